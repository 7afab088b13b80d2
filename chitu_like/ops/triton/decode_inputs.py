"""ops/decode_inputs.py in one launch: a program a request."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from chitu_like.ops.decode_inputs import DecodeInputs, decode_inputs_op
from chitu_like.ops.triton.launch import serves

COPIED = 1024
"""Block ids that a program moves at once: 16k tokens of context."""


@triton.jit(do_not_specialize=["row_stride", "table_stride", "out_stride"])
def _decode_inputs_kernel(
    rows, tables, last_sampled,
    input_ids, out_positions, slot_mapping, out_tables, context_lens,
    row_stride, table_stride, out_stride,
    BLOCK_SIZE: tl.constexpr, COPIED: tl.constexpr,
):  # fmt: skip
    request = tl.program_id(0)
    slot = tl.load(rows + request)
    position = tl.load(rows + row_stride + request)
    token_id = tl.load(rows + 2 * row_stride + request).to(tl.int64)
    sampled = tl.load(last_sampled + slot)
    table = tables + slot.to(tl.int64) * table_stride
    block_id = tl.load(table + position // BLOCK_SIZE).to(tl.int64)
    tl.store(input_ids + request, tl.where(token_id < 0, sampled, token_id))
    tl.store(out_positions + request, position.to(tl.int64))
    tl.store(slot_mapping + request, block_id * BLOCK_SIZE + position % BLOCK_SIZE)
    tl.store(context_lens + request, position + 1)
    num_blocks = position // BLOCK_SIZE + 1
    out_table = out_tables + request.to(tl.int64) * out_stride
    for start in range(0, num_blocks, COPIED):
        at = start + tl.arange(0, COPIED)
        tl.store(out_table + at, tl.load(table + at, mask=at < num_blocks), mask=at < num_blocks)


@decode_inputs_op.register("triton", supports=serves)
def decode_inputs(
    rows: Tensor, tables: Tensor, last_sampled: Tensor, block_size: int, out: DecodeInputs
) -> None:
    """See ops/decode_inputs.py."""
    _decode_inputs_kernel[(rows.shape[1],)](
        rows, tables, last_sampled, *out,
        rows.stride(0), tables.stride(0), out.block_tables.stride(0),
        BLOCK_SIZE=block_size, COPIED=COPIED,
    )  # fmt: skip
