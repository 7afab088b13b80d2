"""ops/flat_tables.py in one launch: a program a request, each of which sums the lengths before it."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from chitu_like.ops.flat_tables import FlatTables, flatten_tables_op
from chitu_like.ops.triton.launch import serves

COPIED = 1024
"""Block ids that a program moves at once: 16k tokens of context."""

SUMMED = 256
"""Lengths that it adds up at once. Not as many as there are requests: that would be compiled anew for
each power of two of them."""


@triton.jit(do_not_specialize=["block_tables", "context_lens", "table_stride"])
def _flatten_kernel(
    block_tables, context_lens, indptr, indices, last_block_lens, table_stride,
    BLOCK_SIZE: tl.constexpr, SUMMED: tl.constexpr, COPIED: tl.constexpr,
):  # fmt: skip
    request = tl.program_id(0)
    before = tl.zeros([SUMMED], tl.int32)
    for first in range(0, request, SUMMED):
        others = first + tl.arange(0, SUMMED)
        lens = tl.load(context_lens + others, mask=others < request, other=0)
        before += (lens + (BLOCK_SIZE - 1)) // BLOCK_SIZE
    start = tl.sum(before, 0)
    context_len = tl.load(context_lens + request)
    num_blocks = (context_len + (BLOCK_SIZE - 1)) // BLOCK_SIZE
    tl.store(indptr + request, start)
    # The last program's end; the others' is their neighbour's start, and the same number.
    tl.store(indptr + request + 1, start + num_blocks)
    tl.store(last_block_lens + request, context_len - (num_blocks - 1) * BLOCK_SIZE)
    table = block_tables + request.to(tl.int64) * table_stride
    for first in range(0, num_blocks, COPIED):
        at = first + tl.arange(0, COPIED)
        blocks = tl.load(table + at, mask=at < num_blocks)
        tl.store(indices + start + at, blocks, mask=at < num_blocks)


@flatten_tables_op.register("triton", supports=serves)
def flatten_tables(
    block_tables: Tensor, context_lens: Tensor, block_size: int, out: FlatTables
) -> None:
    """See ops/flat_tables.py."""
    _flatten_kernel[(len(context_lens),)](
        block_tables, context_lens, *out, block_tables.stride(0),
        BLOCK_SIZE=block_size, SUMMED=SUMMED, COPIED=COPIED,
    )  # fmt: skip
