"""Causal attention of chunks of tokens over the paged keys and values of their requests.

The keys and values of the chunk itself are in the cache already, behind those of its prefix. A
request's query rows are numbered token by token, and within a token by the query heads of one
key-value head: row r is head r % group of the token at position r // group. Tiles are cut from these
rows, so they are full whatever the group is, and short chunks of many heads are not padded by head.
They start at multiples of their size, and keys are taken in tiles that do too: so the result of a row
does not depend on the chunk it came in, to the last bit.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from chitu_like.ops.attention_tiles import TILE_FIELDS, Tile
from chitu_like.ops.triton.paged_attention import LOG2_E, attend, cache_constants

_TILE_FIELDS = tl.constexpr(TILE_FIELDS)


@triton.jit(do_not_specialize=["block_tables", "table_stride"])
def _prefill_kernel(
    q, k, v, out, block_tables, tiles, scale,
    token_stride, q_head_stride, out_token_stride, block_stride, slot_stride, head_stride,
    table_stride, num_kv_heads,
    BLOCK_SIZE: tl.constexpr, WINDOW: tl.constexpr, HEAD_DIM: tl.constexpr, DIMS: tl.constexpr,
    GROUP: tl.constexpr, DOT: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One tile of rows of one key-value head."""
    program = tl.program_id(0)
    kv_head = program % num_kv_heads
    tile = tiles + program // num_kv_heads * _TILE_FIELDS
    request = tl.load(tile).to(tl.int64)
    origin, prefix_len = tl.load(tile + 1), tl.load(tile + 2)
    context_len, first_row = tl.load(tile + 3), tl.load(tile + 4)

    row = first_row + tl.arange(0, ROWS)
    is_row = (row >= prefix_len * GROUP) & (row < context_len * GROUP)
    # Of those outside the chunk: its nearest row again, not stored.
    row = tl.minimum(tl.maximum(row, prefix_len * GROUP), context_len * GROUP - 1)
    position, head = row // GROUP, kv_head * GROUP + row % GROUP
    dims = tl.arange(0, DIMS)
    in_head = (dims < HEAD_DIM)[None, :]
    place = (origin + position).to(tl.int64)
    q_at = place * token_stride + head * q_head_stride
    queries = tl.load(q + q_at[:, None] + dims[None, :], mask=in_head, other=0.0).to(DOT)

    # Of the whole tile, in the chunk or not: they decide which keys are masked.
    first = first_row // GROUP
    last = (first_row + ROWS - 1) // GROUP
    low = first * 0
    if WINDOW > 0:
        low = tl.maximum(first + 1 - WINDOW, 0)
    output, _ = attend(
        queries, position, first, last,
        k + kv_head * head_stride, v + kv_head * head_stride,
        block_tables + request * table_stride, block_stride, slot_stride,
        low, tl.minimum(last + 1, context_len), scale,
        BLOCK_SIZE, WINDOW, HEAD_DIM, ROWS, DIMS, KEYS, DOT,
    )  # fmt: skip

    out_at = place * out_token_stride + head * HEAD_DIM
    output = output.to(out.dtype.element_ty)
    tl.store(out + out_at[:, None] + dims[None, :], output, mask=is_row[:, None] & in_head)


def paged_prefill(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_tables: Tensor,
    tiles: Tensor,
    out: Tensor,
    *,
    scale: float,
    window: int | None,
    tile: Tile,
) -> None:
    """Attend the tokens that `tiles` covers to their contexts, causally.

    Args:
        q: [num_tokens, num_heads, head_dim], any strides but the last.
        k: [num_blocks, block_size, num_kv_heads, head_dim].
        v: the same.
        block_tables: [num_reqs, max_blocks] int32.
        tiles: [num_tiles, 5] int32, of `cut_tiles`.
        out: [num_tokens, num_heads, head_dim], contiguous; the rows of these tokens are WRITTEN.
        scale: multiplies q.k.
        window: keys a token sees, itself included; None for all.
        tile: that the tiles were cut for.
    """
    num_kv_heads = k.shape[2]
    _prefill_kernel[(len(tiles) * num_kv_heads,)](
        q, k, v, out, block_tables, tiles, scale * LOG2_E,
        *q.stride()[:2], out.stride(0), *k.stride()[:3], block_tables.stride(0), num_kv_heads,
        **cache_constants(k, v, q, window),
        ROWS=tile.rows,
        KEYS=tile.keys,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )  # fmt: skip
