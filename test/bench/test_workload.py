from __future__ import annotations

import itertools

import pytest

from chitu_like.bench.workload import plan_trace, prompt_of
from chitu_like.simulator.workload import HASH_BLOCK, PlannedRequest, plan_requests


def request(index: int, input_len: int, *hash_ids: int) -> PlannedRequest:
    return PlannedRequest(
        index=index, arrival_s=0.0, input_len=input_len, output_len=1, hash_ids=hash_ids
    )


@pytest.mark.parametrize("length", [1, 2, HASH_BLOCK - 1, HASH_BLOCK, HASH_BLOCK + 1])
@pytest.mark.parametrize("hash_ids", [(), (4,), (4, 5, 6)])
def test_prompts_have_exact_lengths(length: int, hash_ids: tuple[int, ...]) -> None:
    prompt = prompt_of(request(0, length, *hash_ids), 0, 50)
    assert len(prompt) == length
    assert set(prompt) <= set(range(50))


def test_equal_hash_ids_are_equal_blocks_and_nothing_else_is() -> None:
    first = prompt_of(request(0, 3 * HASH_BLOCK, 1, 2, 3), 0, 1000)
    second = prompt_of(request(1, 3 * HASH_BLOCK, 1, 2, 9), 0, 1000)
    assert first[: 2 * HASH_BLOCK] == second[: 2 * HASH_BLOCK]
    assert first[2 * HASH_BLOCK :] != second[2 * HASH_BLOCK :]


def test_prompts_without_hash_ids_share_nothing_and_repeat_with_the_seed() -> None:
    prompts = [prompt_of(request(index, 40), 3, 1000) for index in range(20)]
    assert len({tuple(prompt[:8]) for prompt in prompts}) == 20
    assert prompts[5] == prompt_of(request(5, 40), 3, 1000)
    assert prompts[5] != prompt_of(request(5, 40), 4, 1000)


def test_a_plan_ends_by_count_or_by_time() -> None:
    def times() -> itertools.count[float]:
        return itertools.count(0.0, 0.5)

    lengths = [(1, 2), (3, 4)]
    by_count = list(plan_requests(times(), itertools.cycle(lengths), count=3, duration_s=None))
    assert [(r.index, r.arrival_s, r.input_len, r.output_len) for r in by_count] == [
        (0, 0.0, 1, 2),
        (1, 0.5, 3, 4),
        (2, 1.0, 1, 2),
    ]
    by_time = plan_requests(times(), itertools.cycle(lengths), count=None, duration_s=2.0)
    assert [r.arrival_s for r in by_time] == [0.0, 0.5, 1.0, 1.5]


def test_a_rate_stretches_a_trace_evenly() -> None:
    rows = [PlannedRequest(arrival_s=at, input_len=1, output_len=1) for at in (0.0, 1.0, 4.0)]
    plan = plan_trace(rows, rate=4.0, count=None, duration_s=None)
    assert [r.arrival_s for r in plan] == [0.0, 0.125, 0.5]
    assert [r.arrival_s for r in plan_trace(rows, rate=None, count=None, duration_s=2.0)] == [0, 1]
    assert len(plan_trace(rows, rate=None, count=1, duration_s=None)) == 1
