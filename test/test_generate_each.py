"""LLM.generate_each: answers one by one, and what is left when it is stopped."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from chitu_like import LLM, SamplingParams
from chitu_like.core.errors import RequestError

PROMPT = [5, 6, 7]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    keys = ("models=tiny-chat", "infer.device=cpu", "infer.num_blocks=64", "infer.max_reqs=2")
    with LLM(*keys, progress=False) as loaded:
        yield loaded


def greedy(num_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)


def test_answers_come_as_they_end_and_are_those_of_generate(llm: LLM) -> None:
    params = [greedy(number) for number in (40, 3, 9, 1)]
    found = list(llm.generate_each([PROMPT] * 4, params))
    positions = [position for position, _ in found]
    assert sorted(positions) == [0, 1, 2, 3]
    assert positions.index(1) < positions.index(2) < positions.index(0)
    expected = llm.generate([PROMPT] * 4, params, progress=False)
    for position, output in found:
        assert output.outputs[0].token_ids == expected[position].outputs[0].token_ids


def test_a_refused_prompt_is_an_answer_with_an_error(llm: LLM) -> None:
    found = dict(llm.generate_each([PROMPT, [], [10**6]], greedy(2)))
    assert found[0].error is None
    assert "empty" in str(found[1].error)
    assert "vocabulary" in str(found[2].error)


def test_stopping_hands_out_what_there_is_and_frees_the_rest(llm: LLM) -> None:
    num_steps = 0

    def after_ten_steps() -> bool:
        nonlocal num_steps
        num_steps += 1
        return num_steps >= 10

    params = [greedy(500), greedy(2), greedy(500), greedy(500), greedy(500)]
    found = dict(llm.generate_each([PROMPT] * 5, params, stop_when=after_ten_steps))
    assert found[1].outputs[0].finish_reason is not None
    assert found[0].outputs[0].finish_reason is None
    assert 0 < len(found[0].outputs[0].token_ids) < 500
    assert 4 not in found  # it had not begun
    again = llm.generate([PROMPT], greedy(60), progress=False)[0].outputs[0].token_ids
    assert again[: len(found[0].outputs[0].token_ids)] == found[0].outputs[0].token_ids
    assert llm.stats().kv_usage == 0.0


def test_dropping_the_iterator_aborts(llm: LLM) -> None:
    answers = llm.generate_each([PROMPT] * 3, [greedy(1), greedy(500), greedy(500)])
    next(answers)
    answers.close()  # type: ignore[attr-defined]
    llm.generate([PROMPT], greedy(4), progress=False)
    stats = llm.stats()
    assert (stats.num_running, stats.num_waiting, stats.kv_usage) == (0, 0, 0.0)


def test_params_must_be_one_or_one_each(llm: LLM) -> None:
    with pytest.raises(RequestError, match="2 prompts but 3"):
        list(llm.generate_each([PROMPT] * 2, [greedy(1)] * 3))
