"""What a scheduler does for requests that are prefilled on one instance and decoded on another."""

from __future__ import annotations

import pytest
from fake_executor import expected_output
from scheduling import Rig, make_rig

from chitu_like.core.errors import CapacityError
from chitu_like.core.sampling_params import SamplingParams
from chitu_like.engine.messages import AddRequest
from chitu_like.scheduler.prefilled import Prefilled

PROMPT = list(range(10, 21))


def prefill(rig: Rig, name: str, prompt: list[int], **params: object) -> None:
    values = {"max_tokens": 6, "temperature": 0.0, **params}
    rig.engine.add_prefill(AddRequest(name, prompt, SamplingParams(**values)))  # type: ignore[arg-type]


def prefilled_on(rig: Rig, name: str = "a", prompt: list[int] = PROMPT) -> Prefilled:
    prefill(rig, name, prompt)
    rig.run()
    (prefilled,) = rig.engine.take_prefilled()
    return prefilled


def cross(source: Rig, target: Rig, prefilled: Prefilled) -> range:
    """Reserve, copy, land, let go."""
    request = prefilled.to_request(target.clock[0])
    missing = target.scheduler.reserve(request)
    assert missing is not None
    own = target.scheduler.prompt_blocks(request)
    pairs = [(prefilled.block_ids[i], own[i]) for i in missing]
    target.executor.copy_blocks(source.executor, pairs)
    target.scheduler.land(prefilled.request_id)
    source.engine.let_go(prefilled.request_id)
    return missing


@pytest.mark.parametrize("max_in_flight", [1, 2])
def test_a_request_that_crosses_gives_the_tokens_of_one_that_stays(max_in_flight: int):
    source, target = make_rig(max_in_flight=max_in_flight), make_rig(max_in_flight=max_in_flight)
    prefilled = prefilled_on(source)
    cross(source, target, prefilled)
    target.run()
    assert source.tokens["a"] + target.tokens["a"] == expected_output(PROMPT, 6)
    assert len(source.executor.batches) == 1
    assert all(batch.num_decodes == 1 for batch in target.executor.batches)
    assert source.blocks.usage == target.blocks.usage == 0.0


def test_the_blocks_of_a_prefilled_request_are_kept_until_it_is_let_go():
    rig = make_rig(num_blocks=8, block_size=4, prefix_caching=False, max_seq_len=32)
    prefilled = prefilled_on(rig)
    assert len(prefilled.block_ids) == 3
    assert rig.blocks.num_free == 5
    assert not rig.engine.has_requests
    prefill(rig, "b", [3] * 24)
    rig.step()
    assert "b" not in rig.tokens  # admission feels that nobody pulls
    rig.engine.let_go("a")
    rig.engine.let_go("a")
    rig.run()
    assert rig.tokens["b"] == expected_output([3] * 24, 1)


def test_a_request_of_one_token_does_not_cross():
    rig = make_rig()
    prefill(rig, "one", PROMPT, max_tokens=1)
    prefill(rig, "stop", PROMPT, stop_token_ids=expected_output(PROMPT, 1))
    rig.run()
    assert set(rig.ends) == {"one", "stop"}
    assert rig.engine.take_prefilled() == []
    assert rig.blocks.usage == 0.0


def test_what_the_target_has_cached_is_not_copied():
    source, target = make_rig(), make_rig()
    assert cross(source, target, prefilled_on(source, "a")) == range(0, 3)
    target.run()
    longer = [*PROMPT, 5, 6, 7]
    assert cross(source, target, prefilled_on(source, "b", longer)) == range(2, 4)
    target.run()
    assert source.tokens["b"] + target.tokens["b"] == expected_output(longer, 6)


def test_what_has_landed_is_shared_at_once():
    source, target = make_rig(), make_rig()
    cross(source, target, prefilled_on(source, "a"))
    target.add("b", [*PROMPT, 1], max_tokens=2)
    target.step()
    assert target.executor.batches[-1].num_computed[-1] == 8
    target.run()
    assert target.tokens["b"] == expected_output([*PROMPT, 1], 2)


def test_blocks_that_are_not_filled_yet_are_offered_to_nobody():
    source, target = make_rig(), make_rig()
    prefilled = prefilled_on(source)
    assert target.scheduler.reserve(prefilled.to_request(0.0)) is not None
    target.add("b", PROMPT, max_tokens=6)
    target.run()
    assert target.tokens["b"] == expected_output(PROMPT, 6)
    assert target.scheduler.let_go("a")
    target.blocks.check_integrity()
    assert target.blocks.usage == 0.0


def test_no_room_leaves_no_trace():
    source, target = make_rig(), make_rig(num_blocks=4, max_seq_len=16, max_reqs=2)
    target.add("busy", [1] * 6, max_tokens=9)
    target.step()
    prefilled = prefilled_on(source, prompt=PROMPT[:9])
    assert target.scheduler.reserve(prefilled.to_request(0.0)) is None
    assert target.scheduler.num_crossing == 0
    target.run()
    assert target.scheduler.reserve(prefilled.to_request(0.0)) is not None


def test_what_can_never_run_is_refused_by_name():
    source = make_rig()
    prefilled = prefilled_on(source)
    with pytest.raises(CapacityError, match=r"exceed infer\.max_seq_len=16"):
        make_rig(max_seq_len=16).scheduler.reserve(prefilled.to_request(0.0))
    target = make_rig()
    target.scheduler.reserve(prefilled.to_request(0.0))
    with pytest.raises(CapacityError, match="'a' is open already"):
        target.scheduler.reserve(prefilled.to_request(0.0))


@pytest.mark.parametrize("num_host_blocks", [0, 64])
def test_a_landed_request_goes_on_although_a_preempted_one_waits_for_its_blocks(
    num_host_blocks: int,
):
    """It holds what the other one lacks, so it has to come through first: a deadlock otherwise."""
    source = make_rig()
    target = make_rig(
        policy="fcfs",
        num_blocks=8,
        max_seq_len=32,
        num_host_blocks=num_host_blocks,
        prefix_caching=False,
    )
    prefilled = prefilled_on(source)
    target.add("first", [1] * 11, max_tokens=20)
    target.step()
    target.add("second", [2] * 11, max_tokens=1)
    target.step()
    cross(source, target, prefilled)  # 3 blocks of 8
    target.run()
    assert target.tokens["first"] == expected_output([1] * 11, 20)
    assert source.tokens["a"] + target.tokens["a"] == expected_output(PROMPT, 6)


def test_a_preempted_request_that_crossed_is_recomputed_here_without_new_prompt_logprobs():
    source = make_rig()
    prefill(source, "a", PROMPT, prompt_logprobs=0, max_tokens=14)
    source.run()
    (prefilled,) = source.engine.take_prefilled()
    target = make_rig(policy="fcfs", num_blocks=9, max_seq_len=36, prefix_caching=False)
    target.add("first", [1] * 5, max_tokens=25)
    target.step()
    cross(source, target, prefilled)
    target.run()
    assert target.scheduler.num_preemptions > 0
    assert source.tokens["a"] + target.tokens["a"] == expected_output(PROMPT, 14)
    assert len(source.prompt_logprobs["a"]) == len(PROMPT) - 1
    assert target.prompt_logprobs["a"] == []


@pytest.mark.parametrize("num_host_blocks", [0, 64])
@pytest.mark.parametrize("max_tokens", [2, 6])
def test_one_that_is_outranked_while_its_first_token_is_under_way_crosses_later(
    num_host_blocks: int, max_tokens: int
):
    """Its blocks are gone when the token comes: it is computed again, up to one token more."""
    source = make_rig(
        policy="request_preset", max_reqs=1, max_in_flight=2, num_host_blocks=num_host_blocks
    )
    target = make_rig()
    prefill(source, "a", PROMPT, max_tokens=max_tokens, priority=5)
    source.engine._fill()
    prefill(source, "urgent", [3] * 5, max_tokens=1, priority=0)
    source.run()
    assert source.scheduler.num_preemptions == 1
    for prefilled in source.engine.take_prefilled():
        cross(source, target, prefilled)
    target.run()
    tokens = source.tokens["a"] + target.tokens.get("a", [])
    assert tokens == expected_output(PROMPT, max_tokens)
    assert source.ends.keys() | target.ends.keys() == {"a", "urgent"}
    assert source.blocks.usage == target.blocks.usage == 0.0


def test_one_that_ended_here_with_a_batch_under_way_may_soon_be_reserved_again():
    """The lease of a copy ended as it landed: it is offered anew, and its batch is still computed."""
    source, target = make_rig(), make_rig(max_in_flight=2)
    prefilled = prefilled_on(source)
    cross(source, target, prefilled)
    target.engine._fill()
    target.engine.abort("a")
    assert target.scheduler.reserve(prefilled.to_request(0.0)) is None
    target.run()
    assert target.scheduler.reserve(prefilled.to_request(0.0)) is not None
