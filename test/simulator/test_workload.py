from __future__ import annotations

import itertools
import random

import pytest

from chitu_like.core.errors import ConfigError
from chitu_like.simulator.workload import (
    HASH_BLOCK,
    PlannedRequest,
    at_rate,
    drawn,
    prompt_tokens,
    repeated,
    stretched,
    windowed,
)


def request(index: int, arrival_s: float, input_len: int = 1, *hash_ids: int) -> PlannedRequest:
    return PlannedRequest(
        index=index, arrival_s=arrival_s, input_len=input_len, output_len=1, hash_ids=hash_ids
    )


@pytest.mark.parametrize("length", [1, HASH_BLOCK - 1, HASH_BLOCK, HASH_BLOCK + 1, 5 * HASH_BLOCK])
@pytest.mark.parametrize("hash_ids", [(), (4,), (4, 5, 6)])
def test_a_prompt_has_its_length_and_no_negative_ids(
    length: int, hash_ids: tuple[int, ...]
) -> None:
    prompt = prompt_tokens(request(0, 0.0, length, *hash_ids))
    assert len(prompt) == length
    assert min(prompt) >= 0


def test_prompts_share_what_their_hash_ids_say_and_nothing_else() -> None:
    names = [(0, 1, 2), (0, 1, 3), (4, 1, 2), (), ()]
    prompts = [prompt_tokens(request(i, 0.0, 1600, *ids)) for i, ids in enumerate(names)]
    for (a, first), (b, second) in itertools.combinations(enumerate(prompts), 2):
        for block in range(4):
            span = slice(block * HASH_BLOCK, (block + 1) * HASH_BLOCK)
            share = block < 3 and names[a][block : block + 1] == names[b][block : block + 1] != ()
            assert (first[span] == second[span]) == share, (a, b, block)


def test_a_window_begins_at_zero_and_is_counted_anew() -> None:
    plan = [request(i, 0.5 * i) for i in range(10)]
    found = list(windowed(plan, start_s=1.0, duration_s=1.5))
    assert [(r.index, r.arrival_s) for r in found] == [(0, 0.0), (1, 0.5), (2, 1.0)]


def test_a_rate_is_the_mean_over_the_gaps() -> None:
    plan = [request(0, 0.0), request(1, 1.0), request(2, 4.0)]
    assert [r.arrival_s for r in at_rate(plan, 4.0)] == [0.0, 0.125, 0.5]
    assert [r.arrival_s for r in stretched(plan, 0.5)] == [0.0, 0.5, 2.0]
    assert [r.arrival_s for r in at_rate(plan[:1], 4.0)] == [0.0]
    with pytest.raises(ConfigError, match="more than 0"):
        at_rate(plan, 0.0)


def test_a_repeated_plan_goes_on_with_new_names() -> None:
    plan = [request(0, 0.0, 600, 0, 1), request(1, 2.0, 600, 0, 2)]
    found = list(itertools.islice(repeated(plan, gap_s=1.0), 5))
    assert [r.arrival_s for r in found] == [0.0, 2.0, 3.0, 5.0, 6.0]
    assert [r.index for r in found] == [0, 1, 2, 3, 4]
    assert [r.hash_ids for r in found] == [(0, 1), (0, 2), (3, 4), (3, 5), (6, 7)]


def test_lengths_are_drawn_alike_from_the_same_seed() -> None:
    pool = [(1, 2), (3, 4), (5, 6)]
    first, second = (list(itertools.islice(drawn(pool, random.Random(5)), 300)) for _ in range(2))
    assert first == second
    assert set(first) == set(pool)
