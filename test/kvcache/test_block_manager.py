"""Blocks: every one is free or held, shared only by equal prefixes, and nothing is lost."""

from __future__ import annotations

import random

import pytest
from scheduling import make_request

from chitu_like.kvcache.block_manager import BlockManager
from chitu_like.kvcache.prefix_cache import ROOT, block_names


def fill(blocks: BlockManager, name: str, prompt: list[int]) -> int:
    """Admit and compute a prompt as the scheduler does; returns the cached tokens."""
    request = make_request(name, prompt)
    cached = blocks.attach_prefix(request)
    assert blocks.extend(request, len(prompt))
    blocks.name_full_blocks(request, len(prompt))
    return cached


def test_equal_prefixes_share_full_blocks_only():
    blocks = BlockManager(16, 4)
    assert fill(blocks, "a", [1, 2, 3, 4, 5, 6, 7, 8, 9]) == 0
    assert fill(blocks, "b", [1, 2, 3, 4, 5, 6, 7, 8, 10]) == 8
    a, b = (blocks.block_ids(make_request(name, [1])) for name in "ab")
    assert a[:2] == b[:2]
    assert a[2] != b[2]
    assert 16 - blocks.num_free == 4


def test_one_token_is_always_left_to_compute():
    blocks = BlockManager(16, 4)
    fill(blocks, "a", [1, 2, 3, 4, 5, 6, 7, 8])
    assert blocks.count_cached(make_request("b", [1, 2, 3, 4, 5, 6, 7, 8])) == 4


def test_same_tokens_after_another_prefix_are_not_shared():
    blocks = BlockManager(16, 4)
    fill(blocks, "a", [1, 1, 1, 1, 5, 6, 7, 8, 9])
    assert fill(blocks, "b", [2, 2, 2, 2, 5, 6, 7, 8, 9]) == 0
    assert block_names(ROOT, [1, 2], 2) != block_names(ROOT, [2, 1], 2)


def test_freed_blocks_stay_cached_until_evicted_oldest_first():
    blocks = BlockManager(4, 4)
    fill(blocks, "a", [1, 2, 3, 4, 0])
    blocks.free(make_request("a", [1]))
    fill(blocks, "b", [5, 6, 7, 8, 0])
    blocks.free(make_request("b", [1]))
    assert blocks.num_free == 4
    assert blocks.count_cached(make_request("x", [1, 2, 3, 4, 9])) == 4
    assert blocks.extend(make_request("c", [0]), 12)  # takes the two unnamed and the oldest named
    assert blocks.count_cached(make_request("y", [1, 2, 3, 4, 9])) == 0
    assert blocks.count_cached(make_request("z", [5, 6, 7, 8, 9])) == 4
    blocks.check_integrity()


def test_extend_takes_nothing_where_blocks_lack():
    blocks = BlockManager(4, 4)
    request = make_request("a", [1])
    assert blocks.extend(request, 8)
    assert not blocks.extend(request, 17)
    assert len(blocks.block_ids(request)) == 2
    blocks.check_integrity()


def test_swapping_frees_the_device_and_comes_back_whole():
    blocks = BlockManager(4, 4, num_host_blocks=3)
    request = make_request("a", list(range(10)))
    blocks.extend(request, 10)
    before = list(blocks.block_ids(request))
    copies = blocks.swap_out(request)
    assert [source for source, _ in copies] == before
    assert blocks.num_free == 4
    assert blocks.num_host_blocks_of(request) == 3
    back = blocks.swap_in(request)
    assert [source for source, _ in back] == [target for _, target in copies]
    assert blocks.block_ids(request) == [target for _, target in back]
    blocks.check_integrity()


def test_swap_out_says_no_where_the_host_is_full():
    blocks = BlockManager(4, 4, num_host_blocks=1)
    request = make_request("a", [1])
    blocks.extend(request, 8)
    assert blocks.swap_out(request) is None
    assert len(blocks.block_ids(request)) == 2


def test_num_to_admit_counts_cached_blocks_that_nobody_holds():
    blocks = BlockManager(8, 4)
    fill(blocks, "a", [1, 2, 3, 4, 5, 6, 7, 8, 9])
    same = make_request("b", [1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert blocks.num_to_admit(same) == 1  # two blocks are shared with the holder
    blocks.free(make_request("a", [1]))
    assert blocks.num_to_admit(same) == 3  # the two are cached but would be taken from the free


def test_check_integrity_notices_a_lost_block():
    blocks = BlockManager(4, 4)
    blocks._free.pop()
    with pytest.raises(RuntimeError, match="do not add up"):
        blocks.check_integrity()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("caching", [True, False])
def test_random_histories_lose_no_block(seed: int, caching: bool):
    rng = random.Random(seed)
    blocks = BlockManager(24, 2, enable_prefix_caching=caching, num_host_blocks=8)
    device, host = {}, {}
    for step in range(400):
        action = rng.random()
        if action < 0.4:
            request = make_request(
                f"r{step}", [rng.randrange(2) for _ in range(rng.randint(1, 14))]
            )
            if blocks.num_to_admit(request) <= blocks.num_free:
                blocks.attach_prefix(request)
                assert blocks.extend(request, request.num_prompt_tokens)
                blocks.name_full_blocks(request, request.num_prompt_tokens)
                device[request.request_id] = request
            else:
                blocks.free(request)
        elif action < 0.6 and device:
            blocks.free(device.pop(rng.choice(sorted(device))))
        elif action < 0.8 and device:
            name = rng.choice(sorted(device))
            if blocks.swap_out(device[name]) is not None:
                host[name] = device.pop(name)
        elif host:
            name = rng.choice(sorted(host))
            if blocks.num_host_blocks_of(host[name]) <= blocks.num_free:
                blocks.swap_in(host[name])
                device[name] = host.pop(name)
        blocks.check_integrity()
    for request in [*device.values(), *host.values()]:
        blocks.free(request)
    blocks.check_integrity()
    assert blocks.num_free == 24
    assert blocks.usage == 0.0
