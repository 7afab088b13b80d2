"""ops/decode_splits.py in one launch: a program a request and window, which sums what stands before it.

That is reading all lengths in every program, a few hundred numbers, instead of a second launch.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from chitu_like.ops.decode_splits import SPLIT_FIELDS, Splits
from chitu_like.ops.triton.launch import dependent_launch, wait_for_previous

LANES = 256
"""Requests, or splits of one, that a program takes at once."""

_SPLIT_FIELDS = tl.constexpr(SPLIT_FIELDS)


@triton.jit
def _key_tiles(context_len, window, KEYS: tl.constexpr):
    """The first key that the token sees, its tile, and how many tiles there are from it on."""
    low = tl.where(window > 0, tl.maximum(context_len - window, 0), 0)
    first = low // KEYS
    return low, first, tl.cdiv(context_len, KEYS) - first


@triton.jit(
    do_not_specialize=[
        "context_lens", "windows", "table", "spans", "num_reqs", "room", "min_tiles", "wanted",
    ]
)  # fmt: skip
def _cut_kernel(
    context_lens, windows, table, spans, num_reqs, room, min_tiles, wanted,
    KEYS: tl.constexpr, LANES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The splits of one request at one window; the last program of a window has the rows to spare."""
    wait_for_previous(PDL)
    request = tl.program_id(0)
    window = tl.load(windows + tl.program_id(1))
    table += tl.program_id(1) * room * _SPLIT_FIELDS
    spans += tl.program_id(1) * num_reqs * 2
    lanes = tl.arange(0, LANES)

    total = 0
    for base in range(0, num_reqs, LANES):
        lens = tl.load(context_lens + base + lanes, mask=base + lanes < num_reqs, other=0)
        _, _, tiles = _key_tiles(lens, window, KEYS)
        total += tl.sum(tiles, 0)
    length = tl.maximum(tl.cdiv(total, wanted), min_tiles)

    start = 0
    for base in range(0, request, LANES):
        is_before = base + lanes < request
        lens = tl.load(context_lens + base + lanes, mask=is_before, other=0)
        _, _, tiles = _key_tiles(lens, window, KEYS)
        start += tl.sum(tl.where(is_before, tl.maximum(tl.cdiv(tiles, length), 1), 0), 0)

    is_request = request < num_reqs
    context_len = tl.load(context_lens + request, mask=is_request, other=0)
    low, first, tiles = _key_tiles(context_len, window, KEYS)
    count = tl.maximum(tl.cdiv(tiles, length), 1)
    tl.store(spans + request * 2, start, mask=is_request)
    tl.store(spans + request * 2 + 1, count, mask=is_request)
    name = tl.where(is_request, request, -1)
    num_rows = tl.where(is_request, count, room - start)
    for base in range(0, num_rows, LANES):
        index = base + lanes
        row = table + (start + index) * _SPLIT_FIELDS
        mask = index < num_rows
        begin = (first + tiles * index // count) * KEYS
        end = (first + tiles * (index + 1) // count) * KEYS
        tl.store(row, index * 0 + name, mask=mask)
        # In a row to spare these are of a request without a context: no keys.
        tl.store(row + 1, tl.maximum(begin, low), mask=mask)
        tl.store(row + 2, tl.minimum(end, context_len), mask=mask)
        tl.store(row + 3, index * 0 + count, mask=mask)


def cut_splits(context_lens: Tensor, splits: Splits) -> None:
    """See ops/decode_splits.py."""
    num_windows, room, _ = splits.table.shape
    num_reqs = len(context_lens)
    assert splits.spans.shape[1] == num_reqs, f"splits of {splits.spans.shape[1]}, not {num_reqs}"
    _cut_kernel[(num_reqs + 1, num_windows)](
        context_lens, splits.window_lens, splits.table, splits.spans,
        num_reqs, room, splits.cut.min_tiles, splits.cut.wanted,
        KEYS=splits.cut.keys, LANES=LANES, num_warps=1, **dependent_launch(context_lens.device),
    )  # fmt: skip
