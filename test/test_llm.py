"""LLM: one bad prompt, conversation or seed never costs the others their answers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from chitu_like import LLM, SamplingParams
from chitu_like.core.errors import RequestError

GREEDY = SamplingParams(temperature=0.0, max_tokens=3)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    keys = ("models=tiny-chat", "infer.device=cpu", "infer.num_blocks=64", "infer.max_reqs=2")
    with LLM(*keys, progress=False) as loaded:
        yield loaded


@pytest.mark.parametrize("bad", [[], [1.5], ["a"], None, 5, [[1]], [-1], [10**30]])
def test_a_bad_prompt_carries_its_error_and_the_others_their_answers(llm: LLM, bad: object) -> None:
    outputs = llm.generate(["Once", bad, "Hello"], GREEDY)  # type: ignore[list-item]
    assert [output.error is None for output in outputs] == [True, False, True]
    assert outputs[1].outputs == []
    with pytest.raises(RequestError):
        list(llm.stream(bad, GREEDY))  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [5, {"a": 1}, None])
def test_what_is_no_list_of_prompts_is_refused(llm: LLM, bad: object) -> None:
    with pytest.raises(RequestError, match="prompts="):
        llm.generate(bad, GREEDY)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [[], [{"role": "user"}], ["hi"], "hi", [{"content": "x"}]])
def test_a_bad_conversation_carries_its_error_and_the_others_their_answers(
    llm: LLM, bad: object
) -> None:
    good = [{"role": "user", "content": "hi"}]
    outputs = llm.chat([good, bad, good], GREEDY)  # type: ignore[list-item]
    assert [output.error is None for output in outputs] == [True, False, True]
    assert "messages" in str(outputs[1].error)
    assert outputs[0].outputs[0].token_ids == outputs[2].outputs[0].token_ids


def test_the_largest_seed_has_room_for_all_completions(llm: LLM) -> None:
    params = SamplingParams(n=2, seed=2**63 - 1, max_tokens=2)
    (output,) = llm.generate("Once", params)
    assert output.error is None
    assert len(output.outputs) == 2
