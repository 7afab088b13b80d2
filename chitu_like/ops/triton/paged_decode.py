"""Attention of one query token a request over its paged keys and values (split-KV decode).

One token gives too few programs to fill a device when requests are few, so the keys of a request are
cut into splits, a program each; what they found is merged by a second kernel
(FlashDecoding, Dao et al. 2023, https://pytorch.org/blog/flash-decoding). The query heads of a group are
the rows of one tile.

The grid depends on the number of requests and splits alone; context lengths are read on the device.
So a call can be captured in a CUDA graph and replayed with other lengths and tables in the same
memory. A request of no context gets zeros. All heads of a request run side by side, since a token's
are neighbours in memory; where lengths differ, the longest request should begin first.

Splits are equal shares of a request's keys, or runs of a fixed number of tokens that begin at fixed
positions. With the latter, merged one after the other, nothing but its own context decides what a
request gets, to the last bit.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from chitu_like.ops.attention_tiles import Splits, Tile
from chitu_like.ops.triton.paged_attention import LOG2_E, attend, cache_constants


@triton.jit(do_not_specialize=["block_tables", "context_lens", "order", "table_stride"])
def _decode_kernel(
    q, k, v, outputs, log_sums, block_tables, context_lens, order, scale,
    token_stride, q_head_stride, block_stride, slot_stride, head_stride, table_stride,
    BLOCK_SIZE: tl.constexpr, WINDOW: tl.constexpr, HEAD_DIM: tl.constexpr, DIMS: tl.constexpr,
    GROUP: tl.constexpr, DOT: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    NUM_SPLITS: tl.constexpr, SPLIT_TILES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One split of one key-value head of one request: [GROUP, HEAD_DIM] output and [GROUP] sums."""
    kv_head, split, request = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    num_kv_heads = tl.num_programs(0)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()  # for the query, and its key and value
    if order is not None:
        request = tl.load(order + request)

    high = tl.load(context_lens + request)
    low = high * 0
    if WINDOW > 0:
        low = tl.maximum(high - WINDOW, 0)
    if SPLIT_TILES > 0:
        tiles_per_split = SPLIT_TILES
        split_tile = split * SPLIT_TILES
    else:  # equal runs of key tiles, over the keys that the token sees
        first_tile = low // KEYS
        tiles_per_split = tl.cdiv(tl.cdiv(high, KEYS) - first_tile, NUM_SPLITS)
        split_tile = first_tile + split * tiles_per_split
    split_low = tl.maximum(low, split_tile * KEYS)
    split_high = tl.minimum(high, (split_tile + tiles_per_split) * KEYS)

    rows = tl.arange(0, ROWS)
    dims = tl.arange(0, DIMS)
    head = kv_head * GROUP + rows
    mask = (rows < GROUP)[:, None] & (dims < HEAD_DIM)[None, :]
    q_at = request.to(tl.int64) * token_stride + head[:, None] * q_head_stride + dims[None, :]
    queries = tl.load(q + q_at, mask=mask, other=0.0).to(DOT)
    position = high - 1
    output, log_sum = attend(
        queries, tl.zeros([ROWS], tl.int32) + position, position, position,
        k + kv_head * head_stride, v + kv_head * head_stride,
        block_tables + request.to(tl.int64) * table_stride, block_stride, slot_stride,
        split_low, split_high, scale, BLOCK_SIZE, WINDOW, HEAD_DIM, ROWS, DIMS, KEYS, DOT,
    )  # fmt: skip

    result = (request * num_kv_heads * GROUP + head) * NUM_SPLITS + split
    if NUM_SPLITS > 1:
        tl.store(log_sums + result, log_sum, mask=rows < GROUP)
        # Of an empty split only the sum is read.
        mask = mask & (rows < tl.where(split_low < split_high, GROUP, 0))[:, None]
    result_at = result.to(tl.int64)[:, None] * HEAD_DIM + dims[None, :]
    tl.store(outputs + result_at, output.to(outputs.dtype.element_ty), mask=mask)


@triton.jit
def _merge_kernel(
    outputs, log_sums, out,
    HEAD_DIM: tl.constexpr, DIMS: tl.constexpr, NUM_SPLITS: tl.constexpr, IN_ORDER: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """The mean of the splits' outputs of one head of one request, weighted by their sums.

    IN_ORDER adds them one after the other, and empty ones as zeros: then the result does not depend
    on how many of them there is room for. Loads pass the first cache by, where little is read again.
    """
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    head = tl.program_id(0).to(tl.int64)  # request * num_heads + head
    dims = tl.arange(0, DIMS)
    in_head = dims < HEAD_DIM
    if IN_ORDER:
        top = float("-inf")
        for split in range(0, NUM_SPLITS):
            log_sum = tl.load(log_sums + head * NUM_SPLITS + split, cache_modifier=".cg")
            top = tl.maximum(top, log_sum)
        total = 0.0
        merged = tl.zeros([DIMS], tl.float32)
        for split in range(0, NUM_SPLITS):
            at = head * NUM_SPLITS + split
            log_sum = tl.load(log_sums + at, cache_modifier=".cg")
            num_dims = tl.where(log_sum == float("-inf"), 0, HEAD_DIM)
            weight = tl.where(log_sum == float("-inf"), 0.0, tl.exp2(log_sum - top))
            output = tl.load(
                outputs + at * HEAD_DIM + dims, mask=dims < num_dims, other=0.0,
                cache_modifier=".cg",
            )  # fmt: skip
            total += weight
            merged += output * weight
    else:
        splits = head * NUM_SPLITS + tl.arange(0, NUM_SPLITS)
        log_sum = tl.load(log_sums + splits, cache_modifier=".cg")
        top = tl.max(log_sum, 0)
        weights = tl.exp2(log_sum - tl.where(top == float("-inf"), 0.0, top))
        mask = (log_sum != float("-inf"))[:, None] & in_head[None, :]
        output = tl.load(
            outputs + splits[:, None] * HEAD_DIM + dims[None, :], mask=mask, other=0.0,
            cache_modifier=".cg",
        )  # fmt: skip
        total = tl.sum(weights, 0)
        merged = tl.sum(output * weights[:, None], 0)
    # As in `attend`: 1 at least, or no split has a key.
    merged = merged / tl.maximum(total, 1.0)
    tl.store(out + head * HEAD_DIM + dims, merged.to(out.dtype.element_ty), mask=in_head)


def paged_decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    out: Tensor,
    splits: Splits,
    *,
    order: Tensor | None = None,
    scale: float,
    window: int | None,
    tile: Tile,
    pdl: bool = False,
) -> None:
    """Attend each request's last token to its context.

    Args:
        q: [num_reqs, num_heads, head_dim], any strides but the last.
        k: [num_blocks, block_size, num_kv_heads, head_dim].
        v: the same.
        block_tables: [num_reqs, max_blocks] int32.
        context_lens: [num_reqs] int32, the token itself included; 0 for none, where out is zeroed.
        out: [num_reqs, num_heads, head_dim], contiguous; WRITTEN.
        splits: MODIFIED.
        order: [num_reqs] int32, each request once: who begins first; None: as they come.
        scale: multiplies q.k.
        window: keys a token sees, itself included; None for all.
        tile: rows are at least those of a group.
        pdl: start while the kernel before ends (Hopper and later, Triton 3.6 and later). Off: the
            programs that merge would take places from those whose end they wait for.
    """
    constants = cache_constants(k, v, q, window)
    launch = {"PDL": True, "launch_pdl": True} if pdl else {"PDL": False}
    num_reqs, num_heads, _ = q.shape
    num_kv_heads = k.shape[2]
    assert splits.tokens % tile.keys == 0, f"splits of {splits.tokens} tokens, {tile.keys} a tile"
    _decode_kernel[(num_kv_heads, splits.count, num_reqs)](
        q, k, v, splits.outputs if splits.count > 1 else out, splits.log_sums,
        block_tables, context_lens, order, scale * LOG2_E,
        *q.stride()[:2], *k.stride()[:3], block_tables.stride(0),
        **constants,
        ROWS=max(tile.rows, triton.next_power_of_2(num_heads // num_kv_heads)),
        KEYS=tile.keys,
        NUM_SPLITS=splits.count,
        SPLIT_TILES=splits.tokens // tile.keys,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        **launch,
    )  # fmt: skip
    if splits.count > 1:
        _merge_kernel[(num_reqs * num_heads,)](
            splits.outputs,
            splits.log_sums,
            out,
            HEAD_DIM=constants["HEAD_DIM"],
            DIMS=constants["DIMS"],
            NUM_SPLITS=splits.count,
            IN_ORDER=splits.tokens > 0,
            num_warps=4,
            **launch,
        )
