"""LLM: one bad prompt, conversation or seed never costs the others their answers."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator

import pytest

from chitu_like import LLM, SamplingParams
from chitu_like.core.errors import ConfigError, RequestError
from chitu_like.core.garbage import LoadedObjects
from chitu_like.core.request import Request
from chitu_like.scheduler.waiting_queue import WaitingQueue

GREEDY = SamplingParams(temperature=0.0, max_tokens=3)


def small_llm() -> LLM:
    return LLM("models=tiny-chat", "infer.device=cpu", "infer.num_blocks=8", progress=False)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    keys = ("models=tiny-chat", "infer.device=cpu", "infer.num_blocks=64", "infer.max_reqs=2")
    keys += ("scheduler.max_queued_requests=1", "scheduler.max_queued_tokens=8")
    with LLM(*keys, progress=False) as loaded:
        yield loaded


@pytest.mark.parametrize("bad", [[], [1.5], ["a"], None, 5, [[1]], [-1], [10**30]])
def test_a_bad_prompt_carries_its_error_and_the_others_their_answers(llm: LLM, bad: object) -> None:
    outputs = llm.generate(["Once", bad, "Hello"], GREEDY)  # type: ignore[list-item]
    assert [output.error is None for output in outputs] == [True, False, True]
    assert outputs[1].outputs == []
    with pytest.raises(RequestError):
        list(llm.stream(bad, GREEDY))  # type: ignore[arg-type]


@pytest.fixture
def _no_other_llm(monkeypatch: pytest.MonkeyPatch) -> None:
    """This file's own would keep frozen what it loaded."""
    monkeypatch.setattr(LoadedObjects, "_frozen", set())


@pytest.mark.usefixtures("_no_other_llm")
def test_what_is_loaded_is_left_out_of_garbage_collection_until_the_end() -> None:
    """A full round over it held up a step of 256 requests on an H200 for a tenth of a second."""
    with small_llm():
        assert gc.get_freeze_count() > 100_000
    assert gc.get_freeze_count() == 0


@pytest.mark.usefixtures("_no_other_llm")
def test_what_is_loaded_stays_out_of_garbage_collection_while_another_llm_lives() -> None:
    first, second = small_llm(), small_llm()
    first.shutdown()
    first.shutdown()  # it counts once
    assert gc.get_freeze_count() > 100_000
    del second  # ends it as a shutdown would
    assert gc.get_freeze_count() == 0


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


def test_the_queue_s_bounds_are_for_strangers(llm: LLM) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=2, n=3)
    outputs = llm.generate(["Once upon a time there was"] * 9, params)
    assert [output.error for output in outputs] == [None] * 9
    assert all(len(output.outputs) == 3 for output in outputs)


def test_an_interrupt_while_prompts_are_fed_leaves_nothing_behind(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the middle of an add left a request that was open and yet in no queue."""
    add = WaitingQueue.add

    def interrupted(self: WaitingQueue, request: Request) -> None:
        signal.raise_signal(signal.SIGINT)
        add(self, request)

    with monkeypatch.context() as patched:
        patched.setattr(WaitingQueue, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            llm.generate(["Once", "Hello"], GREEDY)
    assert (llm.stats().num_running, llm.stats().num_waiting) == (0, 0)
    assert llm.generate(["Once"], GREEDY)[0].error is None


def test_a_stream_dropped_midway_or_left_open_disturbs_nobody(llm: LLM) -> None:
    alone = llm.generate(["Once"], GREEDY)[0].outputs[0].token_ids
    left_open = llm.stream("Hello", SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True))
    num_tokens = len(next(left_open).token_ids)
    next(llm.stream("Once", GREEDY))
    assert llm.generate(["Once"], GREEDY)[0].outputs[0].token_ids == alone
    num_tokens += sum(len(piece.token_ids) for piece in left_open)
    assert num_tokens == 20
    assert (llm.stats().num_running, llm.stats().kv_usage) == (0, 0.0)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (("infer.tp_size=2", "infer.pp_size=2"), "torchrun --nproc_per_node 4 PROGRAM"),
        (("deploy.replicas=2",), "deploy.replicas=2: LLM runs one instance"),
    ],
)
def test_llm_says_how_to_get_the_ranks_that_it_needs(keys: tuple[str, ...], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        LLM("models=tiny-chat", "infer.device=cpu", *keys)


def test_llm_under_torchrun_with_too_many_ranks_is_refused_on_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(
            ConfigError, match=r"torchrun started 2 ranks .* use --nproc_per_node 1"
        ):
            LLM("models=tiny-chat", "infer.device=cpu")
