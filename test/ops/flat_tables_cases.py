"""Block tables as compressed rows: the used part of each, and nothing of what stands behind it.

test_kernels.py runs this file in Triton's interpreter. By hand: `TRITON_INTERPRET=1 pytest
test/ops/flat_tables_cases.py` on a CPU, and without the variable on a CUDA device.
"""

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from chitu_like.ops.flat_tables import FlatTables
from chitu_like.ops.triton.flat_tables import flatten_tables
from chitu_like.ops.triton.paged_attention import is_interpreted

DEVICE = "cpu" if is_interpreted() else "cuda"
SHAPES = [  # (requests, blocks of the longest, block size)
    (1, 1, 1),
    (1, 5, 16),
    (3, 4, 7),
    (8, 3, 16),
    (33, 1030, 2),
]


def check(
    flatten: Callable[[Tensor, Tensor, int, FlatTables], None],
    num_reqs: int,
    max_blocks: int,
    block_size: int,
    device: str,
) -> None:
    tables = torch.randint(1, 10**6, (num_reqs, max_blocks), dtype=torch.int32)
    context_lens = [random.randint(1, max_blocks * block_size) for _ in range(num_reqs)]
    context_lens[-1] = max_blocks * block_size
    used = [-(-length // block_size) for length in context_lens]
    for room in {sum(used), num_reqs * max_blocks + 1}:
        out = FlatTables.empty(num_reqs + 2, room, torch.device(device))
        lens = torch.tensor(context_lens, dtype=torch.int32, device=device)
        flatten(tables.to(device), lens, block_size, out.head(num_reqs))
        indptr, indices, last_lens = (part.tolist() for part in out)
        expected = [
            block for row, n in zip(tables.tolist(), used, strict=True) for block in row[:n]
        ]
        assert indices[: sum(used)] == expected
        assert not any(indices[sum(used) :])
        assert indptr == [*(sum(used[:row]) for row in range(num_reqs + 1)), 0, 0]
        assert all(1 <= length <= block_size for length in last_lens[:num_reqs])
        assert not any((a - b) % block_size for a, b in zip(context_lens, last_lens, strict=False))
        assert last_lens[num_reqs:] == [0, 0]


@pytest.mark.parametrize(("num_reqs", "max_blocks", "block_size"), SHAPES)
def test_rows_stand_one_behind_the_other(num_reqs: int, max_blocks: int, block_size: int) -> None:
    check(flatten_tables, num_reqs, max_blocks, block_size, DEVICE)
