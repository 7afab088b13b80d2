"""Any Hugging Face folder of the dense families, `models=auto models.ckpt_dir=...`: transformers' tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fakes import ByteTokenizer
from models.families import FAMILIES, hf_generate, twin_of

from chitu_like import LLM, SamplingParams

PROMPTS = [[5, 9, 17], list(range(3, 40)), [7] * 12, [100, 3, 50, 2, 8]]
NUM_TOKENS = 24
QUICK = ("llama", "qwen2", "glm4", "opt")  # on every run; the layers of all: models/test_parity.py


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ByteTokenizer.save(tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in FAMILIES],
)
def test_a_folder_gives_the_tokens_of_transformers(name: str, tmp_path: Path, tokenizer_dir: Path):
    """Batched, in chunks, from a paged cache, with overlap: all at once, and the tokens are equal."""
    _, model, _ = twin_of(name)
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    # dynamic: a prompt beyond the original length has no one right answer, see layers/rotary.py
    prompts = [prompt[:20] for prompt in PROMPTS] if "dynamic" in name else PROMPTS
    keys = ("infer.device=cpu", "infer.prefill_chunk_size=8", "infer.block_size=4")
    params = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
    with LLM(
        "models=auto",
        f"models.ckpt_dir={tmp_path}",
        f"models.tokenizer_path={tokenizer_dir}",
        "dtype=float32",
        *keys,
        progress=False,
    ) as llm:
        answers = llm.generate(prompts, params)
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer.error is None
        room = min(NUM_TOKENS, len(answer.outputs[0].token_ids))
        assert answer.outputs[0].token_ids == hf_generate(model, prompt, room)
        assert room == NUM_TOKENS or len(prompt) + room >= _max_len(tmp_path)


def _max_len(folder: Path) -> int:
    config = json.loads((folder / "config.json").read_text())
    return int(config["max_position_embeddings"])


def test_dummy_weights_need_no_tokenizer_and_give_empty_text():
    with LLM(
        "models=qwen2.5-0.5b",
        "models.load_format=dummy",
        "models.hf_overrides.num_hidden_layers=2",
        "infer.max_seq_len=64",
        "infer.device=cpu",
        progress=False,
    ) as llm:
        answer = llm.generate([1, 2, 3], SamplingParams(temperature=0.0, max_tokens=5))[0]
    assert len(answer.outputs[0].token_ids) == 5
    assert answer.outputs[0].text == ""
    assert torch.is_inference_mode_enabled() is False
