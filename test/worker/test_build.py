"""The runner built from options, with this package's own models and attention."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
import torch
from tiny_model import sampling_row, tiny_options

from chitu_like.core.batch import SAMPLED_LAST, ScheduledBatch, SlotRow
from chitu_like.core.errors import UnsupportedError
from chitu_like.worker import model_runner
from chitu_like.worker.model_runner import ModelRunner


def generate(runner: ModelRunner, prompt: list[int], num_tokens: int) -> list[int]:
    row = SlotRow(0, len(prompt), list(range(8)), sampling_row(), [])
    batch = ScheduledBatch(0, [0], [len(prompt)], [0], [True], prompt, [[]], [row], [], [], 0)
    tokens = runner.execute(batch).token_ids
    for step in range(1, num_tokens):
        position = len(prompt) + step - 1
        batch = ScheduledBatch(
            step, [0], [1], [position], [True], [SAMPLED_LAST], [[]], [], [], [], 1
        )
        tokens += runner.execute(batch).token_ids
    return tokens


def test_the_example_of_the_docstring_prints_what_transformers_generates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model.generate(
            torch.tensor([[11, 12, 13]]), max_new_tokens=5, do_sample=False, eos_token_id=None
        )[0, 3:].tolist()
    example = textwrap.dedent((model_runner.__doc__ or "").split("::\n", 1)[1])
    assert len(example.strip().splitlines()) <= 22
    exec(compile(example, "example", "exec"), {"folder": tmp_path})
    assert capsys.readouterr().out.strip() == str(expected)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("attn_type", ["ref", "sdpa"])
def test_dummy_weights_give_the_same_tokens_with_every_backend(attn_type: str, device: str) -> None:
    outputs = []
    for options in (
        tiny_options(attn_type="ref"),
        tiny_options(attn_type=attn_type, device=device),
    ):
        runner = ModelRunner.build(options)
        runner.load(load_format="dummy", seed=5)
        runner.allocate(8)
        outputs.append(generate(runner, [1, 2, 3, 4, 5], 12))
    assert outputs[0] == outputs[1]


def test_a_model_that_is_not_loaded_computes_zeros() -> None:
    runner = ModelRunner.build(tiny_options())
    assert runner.load(load_format="none") is None
    runner.allocate(8)
    assert generate(runner, [1, 2], 4) == [0, 0, 0, 0]


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(UnsupportedError, match=r"(?s)paged_attention.*infer\.attn_type"):
        ModelRunner.build(tiny_options(attn_type="paged_attention"))
