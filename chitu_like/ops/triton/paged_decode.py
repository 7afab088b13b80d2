"""Attention of one query token a request over its paged keys and values (split-KV decode).

The keys of a request are cut into splits (ops/decode_splits.py), a program each; what they found is
merged by a second kernel (FlashDecoding, Dao et al. 2023, https://pytorch.org/blog/flash-decoding). The
only split of a request writes the result itself. The query heads of a group are the rows of one tile.

The grid depends on the room for splits alone; the splits are read on the device. So a call can be
captured in a CUDA graph and replayed with other splits and block tables in the same memory. Programs
without a split, and merges of one, leave at once. A request of no context gets zeros.

Splits are merged in their order, and those of a request in the same tiles wherever they stand: what a
request gets, to the last bit, depends on how it was cut and on nothing else.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from chitu_like.ops.attention_tiles import Tile
from chitu_like.ops.decode_splits import SPLIT_FIELDS, UNBOUNDED, Splits
from chitu_like.ops.triton.launch import dependent_launch
from chitu_like.ops.triton.paged_attention import LOG2_E, attend, cache_constants

MERGED_OUTPUTS = 16
"""Outputs of a split and a head that a merging program holds at once: registers, of which more would
leave room for fewer programs."""

FEW_MERGES = 1024
"""Heads of a batch up to which each is merged by a program of its own; of more, those of a group
are merged by one, or the device would be busy starting programs that have nothing to do. A GUESS."""

_SPLIT_FIELDS = tl.constexpr(SPLIT_FIELDS)


@triton.jit(do_not_specialize=["log_sums", "block_tables", "table", "table_stride"])
def _decode_kernel(
    q, k, v, out, outputs, log_sums, block_tables, table, scale,
    token_stride, q_head_stride, block_stride, slot_stride, head_stride, table_stride,
    BLOCK_SIZE: tl.constexpr, WINDOW: tl.constexpr, HEAD_DIM: tl.constexpr, DIMS: tl.constexpr,
    GROUP: tl.constexpr, DOT: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One split by one key-value head: [GROUP, HEAD_DIM] output, and [GROUP] sums if there are more.

    The key-value heads of a split stand side by side, as in the cache, and rows to spare at the end.
    """
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()  # for the query, and its key and value
    split = tl.program_id(0) // NUM_KV_HEADS
    kv_head = tl.program_id(0) % NUM_KV_HEADS
    row = table + split * _SPLIT_FIELDS
    request = tl.load(row).to(tl.int64)
    low, high = tl.load(row + 1), tl.load(row + 2)
    if request < 0:
        return

    rows = tl.arange(0, ROWS)
    dims = tl.arange(0, DIMS)
    head = kv_head * GROUP + rows
    mask = (rows < GROUP)[:, None] & (dims < HEAD_DIM)[None, :]
    q_at = request * token_stride + head[:, None] * q_head_stride + dims[None, :]
    queries = tl.load(q + q_at, mask=mask, other=0.0).to(DOT)
    # As if the token stood at the split's last key: all the keys are ones that it sees.
    position = high - 1
    output, log_sum = attend(
        queries, tl.zeros([ROWS], tl.int32) + position, position, position,
        k + kv_head * head_stride, v + kv_head * head_stride,
        block_tables + request * table_stride, block_stride, slot_stride,
        low, high, scale, BLOCK_SIZE, WINDOW, HEAD_DIM, ROWS, DIMS, KEYS, DOT,
    )  # fmt: skip

    if tl.load(row + 3) == 1:
        at = (request * (NUM_KV_HEADS * GROUP) + head)[:, None] * HEAD_DIM + dims[None, :]
        tl.store(out + at, output.to(out.dtype.element_ty), mask=mask)
    else:
        result = split.to(tl.int64) * (NUM_KV_HEADS * GROUP) + head
        tl.store(log_sums + result, log_sum, mask=rows < GROUP)
        tl.store(outputs + result[:, None] * HEAD_DIM + dims[None, :], output, mask=mask)


@triton.jit(do_not_specialize=["log_sums", "spans"])
def _merge_kernel(
    outputs, log_sums, out, spans,
    NUM_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DIMS: tl.constexpr, HEADS: tl.constexpr,
    SPLITS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """HEADS heads of a request: the mean of its splits' outputs, weighted by their sums.

    Invariant, after splits i with the sums s_i in base 2: top = max s_i, total = sum 2^(s_i - top),
    merged = sum 2^(s_i - top) output_i. No split of several is without keys, so s_i is finite. All
    is read once, and passes the first cache by.
    """
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    request = tl.program_id(0).to(tl.int64)
    start, count = tl.load(spans + request * 2), tl.load(spans + request * 2 + 1)
    if count == 1:
        return

    lanes, dims = tl.program_id(1) * HEADS + tl.arange(0, HEADS), tl.arange(0, DIMS)
    head = tl.minimum(lanes, NUM_HEADS - 1)
    top = tl.full([HEADS], float("-inf"), tl.float32)
    total = tl.zeros([HEADS], tl.float32)
    merged = tl.zeros([HEADS, DIMS], tl.float32)
    for first in range(0, count, SPLITS):
        split = first + tl.arange(0, SPLITS)
        is_split = (split < count)[:, None]
        at = (start + split).to(tl.int64)[:, None] * NUM_HEADS + head[None, :]  # [SPLITS, HEADS]
        log_sum = tl.load(
            log_sums + at, mask=is_split, other=float("-inf"), cache_modifier=".cg"
        )  # fmt: skip
        output = tl.load(
            outputs + at[:, :, None] * HEAD_DIM + dims[None, None, :],
            mask=is_split[:, :, None] & (dims < HEAD_DIM)[None, None, :],
            other=0.0,
            cache_modifier=".cg",
        )
        new_top = tl.maximum(top, tl.max(log_sum, 0))
        weights = tl.exp2(log_sum - new_top[None, :])
        decay = tl.exp2(top - new_top)
        total = total * decay + tl.sum(weights, 0)
        merged = merged * decay[:, None] + tl.sum(output * weights[:, :, None], 0)
        top = new_top
    merged = merged / total[:, None]
    mask = (lanes < NUM_HEADS)[:, None] & (dims < HEAD_DIM)[None, :]
    at = (request * NUM_HEADS + head)[:, None] * HEAD_DIM + dims[None, :]
    tl.store(out + at, merged.to(out.dtype.element_ty), mask=mask)


def paged_decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_tables: Tensor,
    out: Tensor,
    splits: Splits,
    *,
    scale: float,
    window: int | None,
    tile: Tile,
    pdl: bool | None = None,
) -> None:
    """Attend each request's last token to its context.

    Args:
        q: [num_reqs, num_heads, head_dim], any strides but the last.
        k: [num_blocks, block_size, num_kv_heads, head_dim].
        v: the same.
        block_tables: [num_reqs, max_blocks] int32.
        out: [num_reqs, num_heads, head_dim], contiguous; WRITTEN. Zero where there is no context.
        splits: cut for this batch; outputs and log_sums are MODIFIED.
        scale: multiplies q.k.
        window: keys a token sees, itself included; None for all. One of the splits'.
        tile: of the keys that the splits were cut for; rows are at least those of a group.
        pdl: start while the kernel before ends (Hopper and later, Triton 3.6 and later); None: as
            ops/triton/launch.py says of all kernels.
    """
    assert splits.cut.keys == tile.keys, f"tiles of {tile.keys} keys, cut for {splits.cut.keys}"
    constants = cache_constants(k, v, q, window)
    launch = dependent_launch(q.device)
    if pdl is not None:
        launch = {"PDL": pdl, **({"launch_pdl": True} if pdl else {})}
    num_reqs, num_heads, _ = q.shape
    num_kv_heads = k.shape[2]
    index = splits.windows.index(window)
    table = splits.table[index]
    group = triton.next_power_of_2(num_heads // num_kv_heads)
    _decode_kernel[(len(table) * num_kv_heads,)](
        q, k, v, out, splits.outputs, splits.log_sums, block_tables, table, scale * LOG2_E,
        *q.stride()[:2], *k.stride()[:3], block_tables.stride(0),
        **constants,
        ROWS=max(tile.rows, group),
        KEYS=tile.keys,
        NUM_KV_HEADS=num_kv_heads,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **launch,
    )  # fmt: skip
    if splits.has_merge:
        # Where bits must not depend on the batch, neither may the way of adding.
        is_few = splits.cut.wanted == UNBOUNDED or num_reqs * num_heads <= FEW_MERGES
        heads = 1 if is_few else group
        _merge_kernel[(num_reqs, triton.cdiv(num_heads, heads))](
            splits.outputs,
            splits.log_sums,
            out,
            splits.spans[index],
            NUM_HEADS=num_heads,
            HEAD_DIM=constants["HEAD_DIM"],
            DIMS=constants["DIMS"],
            HEADS=heads,
            SPLITS=max(1, MERGED_OUTPUTS // heads),
            num_warps=4,
            **launch,
        )
