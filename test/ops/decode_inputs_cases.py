"""What a step of decodes computes with: gathered by slot, for requests in any order.

test_kernels.py runs this in the interpreter; test_decode_inputs.py holds the reference to the same.
"""

import random
from collections.abc import Callable

import pytest
import torch

from chitu_like.ops.decode_inputs import DecodeInputs

SHAPES = [  # (requests, blocks of the longest, block size)
    (1, 1, 1),
    (1, 5, 16),
    (3, 4, 7),
    (8, 3, 16),
    (33, 1030, 2),
]
by_shape = pytest.mark.parametrize(("num_reqs", "max_blocks", "block_size"), SHAPES)


def check(
    gather: Callable[..., None], num_reqs: int, max_blocks: int, block_size: int, device: str
) -> None:
    random.seed(num_reqs)
    num_slots = num_reqs + 3
    tables = torch.randint(0, 10**6, (num_slots, max_blocks), dtype=torch.int32)
    sampled = torch.randint(0, 10**5, (num_slots,))
    slots = random.sample(range(num_slots), num_reqs)
    positions = [random.randrange(max_blocks * block_size) for _ in slots]
    positions[0] = max_blocks * block_size - 1
    token_ids = [random.choice([-1, random.randrange(10**5)]) for _ in slots]
    out = DecodeInputs.empty(num_reqs + 2, max_blocks, torch.device(device))
    rows = torch.full((4, num_reqs + 5), 7, dtype=torch.int32)
    rows[:3, :num_reqs] = torch.tensor([slots, positions, token_ids])
    gather(
        rows.to(device)[:3, :num_reqs],
        tables.to(device),
        sampled.to(device),
        block_size,
        out.head(num_reqs),
    )
    got = DecodeInputs(*(part.cpu() for part in out))
    for row, (slot, position, token_id) in enumerate(zip(slots, positions, token_ids, strict=True)):
        expected = int(sampled[slot]) if token_id < 0 else token_id
        block = tables[slot, position // block_size]
        assert int(got.input_ids[row]) == expected
        assert int(got.positions[row]) == position
        assert int(got.context_lens[row]) == position + 1
        assert int(got.slot_mapping[row]) == int(block) * block_size + position % block_size
        used = position // block_size + 1
        assert torch.equal(got.block_tables[row, :used], tables[slot, :used])
    assert all(not part[num_reqs:].any() for part in got), "rows behind the step were written"


@by_shape
def test_the_kernel_gathers_what_the_slots_hold(
    num_reqs: int, max_blocks: int, block_size: int
) -> None:
    from chitu_like.ops.triton.decode_inputs import decode_inputs
    from chitu_like.ops.triton.paged_attention import is_interpreted

    device = "cpu" if is_interpreted() else "cuda"
    check(decode_inputs, num_reqs, max_blocks, block_size, device)
