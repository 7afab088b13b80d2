"""The same tokens, whatever runs beside, in whatever pieces, from whatever cache.

Everything is compared with one plain run of the embedded model: one request at a time, no prefix
cache, no overlap, the slow attention backend, float32.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from chitu_like import LLM, SamplingParams
from chitu_like.core.output import RequestOutput

QUESTIONS = [
    "hi",
    "Tell me a short story about a dog.",
    "What is tensor parallelism?",
    "what is 3 + 4",
    "How are you today?",
    "Which command starts the service?",
    "Tell me a story about a girl and a tree.",
    "what is a paged kv cache",
]
GREEDY = SamplingParams(temperature=0.0, max_tokens=32)
SAMPLED = SamplingParams(temperature=0.9, top_p=0.95, top_k=50, max_tokens=16, seed=1234)
BASE = (
    "models=tiny-chat",
    "dtype=float32",
    "infer.device=cpu",
    "infer.max_seq_len=512",
    "infer.num_blocks=256",
)
# name -> keys that must not change a token; those of QUICK are tried on every run
VARIANTS: dict[str, tuple[str, ...]] = {
    "defaults": (),
    "batch of one": ("infer.max_reqs=1",),
    "chunks of 3": ("infer.prefill_chunk_size=3",),
    "chunks of 16": ("infer.prefill_chunk_size=16",),
    "no prefix cache": ("infer.enable_prefix_caching=false",),
    "no overlap": ("infer.schedule_overlap=false",),
    "block size 1": ("infer.block_size=1", "infer.num_blocks=4096"),
    "block size 16": ("infer.block_size=16",),
    "slow attention": ("infer.attn_type=ref",),
    "skew cache": ("infer.cache_type=skew", "infer.num_blocks=auto", "infer.max_reqs=4"),
    "preempted by recomputing": (
        "infer.block_size=8",
        "infer.num_blocks=24",
        "infer.max_seq_len=160",
    ),
    "preempted by swapping": (
        "infer.block_size=8",
        "infer.num_blocks=24",
        "infer.max_seq_len=160",
        "infer.swap_space_gib=0.1",
    ),
    "shortest budget": ("scheduler.max_num_batched_tokens=8", "infer.max_reqs=8"),
    "another order": ("scheduler.type=stride,prefill_first", "infer.max_reqs=3"),
}
QUICK = ("defaults", "chunks of 3", "no overlap", "skew cache", "preempted by swapping")


def ask(
    llm: LLM, params: SamplingParams | list[SamplingParams], questions: list[str]
) -> list[RequestOutput]:
    return llm.chat([[{"role": "user", "content": text}] for text in questions], params)


def tokens_of(answers: list[RequestOutput]) -> list[list[int]]:
    assert [answer.error for answer in answers] == [None] * len(answers)
    return [answer.outputs[0].token_ids for answer in answers]


def overrides(*extra: str) -> list[str]:
    """BASE with `extra` on top; a key given in both is taken from `extra`."""
    replaced = {text.split("=")[0] for text in extra}
    return [text for text in BASE if text.split("=")[0] not in replaced] + list(extra)


@pytest.fixture(scope="module")
def plain() -> Iterator[LLM]:
    keys = ("infer.attn_type=ref", "infer.schedule_overlap=false", "infer.max_reqs=1")
    with LLM(*overrides(*keys, "infer.enable_prefix_caching=false"), progress=False) as llm:
        yield llm


@pytest.fixture(scope="module")
def truth(plain: LLM) -> dict[str, list[list[int]]]:
    """Greedy and sampled tokens of every question, each answered alone."""
    return {
        "greedy": [tokens_of(ask(plain, GREEDY, [text]))[0] for text in QUESTIONS],
        "sampled": [tokens_of(ask(plain, SAMPLED, [text]))[0] for text in QUESTIONS],
    }


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in VARIANTS],
)
def test_no_setting_changes_a_token(name: str, truth: dict[str, list[list[int]]]):
    with LLM(*overrides(*VARIANTS[name]), progress=False) as llm:
        ways = [GREEDY] * len(QUESTIONS) + [SAMPLED] * len(QUESTIONS)
        assert tokens_of(ask(llm, ways, QUESTIONS * 2)) == truth["greedy"] + truth["sampled"]
        assert tokens_of(ask(llm, GREEDY, QUESTIONS)) == truth["greedy"]  # now from the cache
        stats = llm._instance.engine.stats()
        if name.startswith("preempted"):
            assert stats.num_preemptions > 0
        if name.startswith("block size"):
            assert stats.prefix_cache_hits > 0
        assert stats.kv_usage == 0.0


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*QUICK, "chunks of 16", "preempted by recomputing"])
def test_steps_recorded_on_a_gpu_give_the_tokens_of_a_cpu(
    name: str, truth: dict[str, list[list[int]]]
):
    keys = ("infer.device=cuda", "infer.attn_type=triton", "infer.use_cuda_graph=true")
    with LLM(*overrides(*keys, *VARIANTS[name]), progress=False) as llm:
        assert tokens_of(ask(llm, GREEDY, QUESTIONS)) == truth["greedy"]
        assert tokens_of(ask(llm, GREEDY, QUESTIONS)) == truth["greedy"]  # now from the cache


def test_streaming_gives_the_pieces_of_the_whole(plain: LLM, truth: dict[str, list[list[int]]]):
    prompt = plain.render_chat([{"role": "user", "content": QUESTIONS[1]}])
    whole = plain.generate(prompt, GREEDY)[0].outputs[0]
    pieces = list(plain.stream(prompt, GREEDY))
    assert "".join(piece.text for piece in pieces) == whole.text
    assert [token for piece in pieces for token in piece.token_ids] == truth["greedy"][1]
    assert pieces[-1].finish_reason == whole.finish_reason
    assert len(pieces) > 10


def test_n_completions_differ_and_are_those_of_their_seeds(plain: LLM):
    prompt = plain.render_chat([{"role": "user", "content": QUESTIONS[1]}])
    params = SamplingParams(n=3, temperature=1.0, max_tokens=24, seed=7)
    together = plain.generate(prompt, params)[0].outputs
    assert [choice.index for choice in together] == [0, 1, 2]
    assert len({tuple(choice.token_ids) for choice in together}) == 3
    for index, choice in enumerate(together):
        alone = SamplingParams(temperature=1.0, max_tokens=24, seed=7 + index)
        assert plain.generate(prompt, alone)[0].outputs[0].token_ids == choice.token_ids


def test_logprobs_belong_to_the_tokens(plain: LLM):
    prompt = plain.render_chat([{"role": "user", "content": "hi"}])
    params = SamplingParams(temperature=0.0, max_tokens=8, logprobs=3, prompt_logprobs=2)
    answer = plain.generate(prompt, params)[0]
    choice = answer.outputs[0]
    assert choice.logprobs is not None
    assert answer.prompt_logprobs is not None
    assert len(choice.logprobs) == len(choice.token_ids)
    assert len(answer.prompt_logprobs) == len(prompt)
    assert answer.prompt_logprobs[0] is None
    for token, entry in zip(choice.token_ids, choice.logprobs, strict=True):
        assert entry[token].rank == 1
        assert entry[token].logprob == max(e.logprob for e in entry.values())
        assert len(entry) == 3
    total = sum(e[t].logprob for t, e in zip(choice.token_ids, choice.logprobs, strict=True))
    assert choice.cumulative_logprob == pytest.approx(total)


def test_a_refused_prompt_costs_the_others_nothing(plain: LLM, truth: dict[str, list[list[int]]]):
    good = plain.render_chat([{"role": "user", "content": QUESTIONS[0]}])
    answers = plain.generate([good, [10**7], [], [1] * 4000, good], GREEDY)
    assert [answer.error is None for answer in answers] == [True, False, False, False, True]
    assert "10000000" in (answers[1].error or "")
    assert answers[0].outputs[0].token_ids == truth["greedy"][0]
    assert answers[4].outputs[0].token_ids == truth["greedy"][0]


def test_a_stop_string_ends_the_text_before_it(plain: LLM):
    prompt = plain.render_chat([{"role": "user", "content": QUESTIONS[1]}])
    whole = plain.generate(prompt, GREEDY)[0].outputs[0]
    stop = whole.text[20:27]
    stopped = SamplingParams(temperature=0.0, max_tokens=32, stop=(stop,))
    choice = plain.generate(prompt, stopped)[0].outputs[0]
    assert choice.text == whole.text[: whole.text.index(stop)]
    assert choice.stop_reason == stop
    assert choice.finish_reason == "stop"
    assert choice.token_ids == whole.token_ids[: len(choice.token_ids)]
