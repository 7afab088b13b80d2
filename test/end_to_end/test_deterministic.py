"""infer.deterministic on a GPU: a request's tokens are the same alone and among 255 others."""

from __future__ import annotations

import random

import pytest

from chitu_like import LLM, SamplingParams
from chitu_like.core.output import CompletionOutput

# Real widths, few layers. Random weights leave the best tokens close together: a last bit shows.
MODEL = (
    "models=llama-3.2-1b",
    "models.load_format=dummy",
    "models.hf_overrides.num_hidden_layers=3",
    "dtype=bfloat16",
    "infer.deterministic=true",
    "infer.max_seq_len=256",
    "infer.max_reqs=256",
    "infer.num_blocks=4096",
    "infer.prefill_chunk_size=500",
    "infer.enable_prefix_caching=false",  # else only the first run would compute the prompt
)
VOCAB_SIZE, PROMPT_LEN, NUM_TOKENS = 128_000, 37, 32
WATCHED = {
    "greedy": SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True),
    "sampled": SamplingParams(
        temperature=1.0, top_p=0.9, seed=5, max_tokens=NUM_TOKENS, ignore_eos=True
    ),
    "logprobs": SamplingParams(
        temperature=1.0, seed=5, logprobs=2, max_tokens=NUM_TOKENS, ignore_eos=True
    ),
}


def random_ids(rng: random.Random, length: int) -> list[int]:
    return [rng.randrange(VOCAB_SIZE) for _ in range(length)]


def answer_among(llm: LLM, num_reqs: int, params: SamplingParams) -> CompletionOutput:
    """The answer to one prompt, beside others that come before it and decode until it is done.

    Prompts join in every step at first, so its own is cut somewhere, and the last few beside it.
    """
    rng = random.Random(num_reqs)
    prompts = [random_ids(rng, rng.randint(1, 90)) for _ in range(num_reqs - 1)]
    others = [
        SamplingParams(temperature=rng.choice([0.0, 1.5]), seed=i, max_tokens=150, ignore_eos=True)
        for i in range(num_reqs - 1)
    ]
    at = max(0, num_reqs - 5)
    prompts.insert(at, random_ids(random.Random(0), PROMPT_LEN))
    return llm.generate(prompts, [*others[:at], params, *others[at:]])[at].outputs[0]


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", ["true", "false"])
def test_tokens_and_logprobs_do_not_depend_on_the_batch(graphs: str) -> None:
    with LLM(*MODEL, f"infer.use_cuda_graph={graphs}", progress=False) as llm:
        for name, params in WATCHED.items():
            alone = answer_among(llm, 1, params)
            assert len(set(alone.token_ids)) > NUM_TOKENS // 2
            for num_reqs in (7, 64, 256):
                among = answer_among(llm, num_reqs, params)
                assert among.token_ids == alone.token_ids, f"{name} among {num_reqs}"
                assert among.logprobs == alone.logprobs, f"{name} among {num_reqs}"
