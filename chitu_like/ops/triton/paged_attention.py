"""What the paged attention kernels share: the walk over the keys of a request.

A program holds a tile of query rows. A row is one query head of one token; all rows of a tile are of
one request and share one key-value head, so a key that is read serves every query head of its group.
The program walks over the keys in tiles and keeps for each row a softmax that is exact over the keys
so far (Milakov and Gimelshein 2018, arXiv:1805.02867; FlashAttention-2, Dao 2023, arXiv:2307.08691).
Scores never reach memory.

The key at position p of a request lies in block `block_tables[request, p // block_size]` at offset
p % block_size. Only keys that some row sees are read: the rest of a block may hold anything.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from chitu_like.ops.attention_tiles import MIN_SIDE

LOG2_E = math.log2(math.e)
_TL_DTYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


@triton.jit
def _take_tiles(
    acc, total, top, q, positions, k, v, table, block_stride, slot_stride, begin, end, low, high,
    scale, BLOCK_SIZE: tl.constexpr, WINDOW: tl.constexpr, HEAD_DIM: tl.constexpr,
    DIMS: tl.constexpr, KEYS: tl.constexpr, DOT: tl.constexpr, IS_MASKED: tl.constexpr,
):  # fmt: skip
    """Take the key tiles that start in [begin, end) into the softmax of each row.

    Invariant, for a row that saw the keys j so far, with scores s_j in base 2: top = max s_j,
    total = sum 2^(s_j - top), acc = sum 2^(s_j - top) v_j. For a row that saw none: -inf, 0, 0.

    Unless IS_MASKED, every row sees every key of these tiles; else [low, high) are those to read.
    """
    dims = tl.arange(0, DIMS)
    at = begin + tl.arange(0, KEYS)
    next_block = tl.load(table + at // BLOCK_SIZE, mask=at < high, other=0)
    for start in range(begin, end, KEYS):
        at = start + tl.arange(0, KEYS)
        is_key = (at >= low) & (at < high)
        # Loaded a tile ahead: only where no load waits for another of the same round does Triton keep
        # the tiles of later rounds in flight.
        block = next_block
        next_block = tl.load(table + (at + KEYS) // BLOCK_SIZE, mask=at + KEYS < high, other=0)
        slot = block.to(tl.int64) * block_stride + (at % BLOCK_SIZE).to(tl.int64) * slot_stride
        where = slot[:, None] + dims[None, :]
        if IS_MASKED:
            mask = is_key[:, None] & (dims < HEAD_DIM)[None, :]
            key = tl.load(k + where, mask=mask, other=0.0)
            value = tl.load(v + where, mask=mask, other=0.0)
        elif HEAD_DIM < DIMS:
            key = tl.load(k + where, mask=(dims < HEAD_DIM)[None, :], other=0.0)
            value = tl.load(v + where, mask=(dims < HEAD_DIM)[None, :], other=0.0)
        else:
            key = tl.load(k + where)
            value = tl.load(v + where)

        scores = tl.dot(q, tl.trans(key.to(DOT)), input_precision="ieee") * scale  # [ROWS, KEYS]
        if IS_MASKED:
            distance = positions[:, None] - at[None, :]
            is_seen = (distance >= 0) & is_key[None, :]
            if WINDOW > 0:
                is_seen = is_seen & (distance < WINDOW)
            scores = tl.where(is_seen, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        base = new_top
        if IS_MASKED:  # a row that has seen no key yet: -inf - -inf would be NaN
            base = tl.where(new_top == float("-inf"), 0.0, new_top)
        weights = tl.exp2(scores - base[:, None])
        decay = tl.exp2(top - base)
        total = total * decay + tl.sum(weights, 1)
        acc = tl.dot(weights.to(DOT), value.to(DOT), acc * decay[:, None], input_precision="ieee")
        top = new_top
    return acc, total, top


@triton.jit
def attend(
    q, positions, first, last, k, v, table, block_stride, slot_stride, low, high, scale,
    BLOCK_SIZE: tl.constexpr, WINDOW: tl.constexpr, HEAD_DIM: tl.constexpr, ROWS: tl.constexpr,
    DIMS: tl.constexpr, KEYS: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Attention of a tile of rows over the keys [low, high) of their request.

    Tiles of keys start at multiples of KEYS, and fall into three runs: those that the window cuts
    for some row, those that every row sees whole, which need no mask, and those around the diagonal.

    Args:
        q: [ROWS, DIMS] of dtype DOT, zero beyond HEAD_DIM.
        positions: [ROWS] of the rows in their request.
        first: of those that the tile may hold; none of them is less.
        last: likewise; none of them is more.
        k: pointer to the key-value head of slot 0.
        v: likewise.
        table: pointer to the request's row of the block table.
        block_stride: of k and v, in elements.
        slot_stride: likewise.
        low: the first key that some row sees, or the start of a part of those.
        high: one past the last; nothing is to do where low >= high.
        scale: multiplies q.k; log2(e) is in it, since the softmax is taken in base 2.
        BLOCK_SIZE: tokens a block of the cache.
        WINDOW: keys that a row sees, its own included; 0 for all.
        HEAD_DIM: of queries, keys and values.
        ROWS: query rows of a tile.
        DIMS: HEAD_DIM, padded to a power of two.
        KEYS: keys of a tile.
        DOT: dtype of the factors of products, which are added in float32.

    Returns: [ROWS, DIMS] float32 output over these keys, and [ROWS] the base-2 logarithm of the sum
        of 2^score over them: 0 and -inf for a row that sees none of them.
    """
    acc = tl.zeros([ROWS, DIMS], tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    top = tl.full([ROWS], float("-inf"), tl.float32)

    begin = low // KEYS * KEYS
    whole_begin = begin
    if WINDOW > 0:
        whole_low = tl.maximum(low, last + 1 - WINDOW)
        whole_begin = tl.minimum(tl.cdiv(whole_low, KEYS) * KEYS, high)
        acc, total, top = _take_tiles(
            acc, total, top, q, positions, k, v, table, block_stride, slot_stride,
            begin, whole_begin, low, high, scale,
            BLOCK_SIZE, WINDOW, HEAD_DIM, DIMS, KEYS, DOT, True,
        )  # fmt: skip
    whole_end = tl.maximum(whole_begin, tl.minimum(high, first + 1) // KEYS * KEYS)
    acc, total, top = _take_tiles(
        acc, total, top, q, positions, k, v, table, block_stride, slot_stride,
        whole_begin, whole_end, low, high, scale,
        BLOCK_SIZE, WINDOW, HEAD_DIM, DIMS, KEYS, DOT, False,
    )  # fmt: skip
    acc, total, top = _take_tiles(
        acc, total, top, q, positions, k, v, table, block_stride, slot_stride,
        whole_end, high, low, high, scale,
        BLOCK_SIZE, WINDOW, HEAD_DIM, DIMS, KEYS, DOT, True,
    )  # fmt: skip
    # The largest score adds 2^0, so a total is 1 at least, or 0 where no key was seen.
    total = tl.maximum(total, 1.0)
    return acc / total[:, None], top + tl.log2(total)


def is_interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on CPU tensors (TRITON_INTERPRET=1)."""
    return triton.knobs.runtime.interpret


def cache_constants(k: Tensor, v: Tensor, q: Tensor, window: int | None) -> dict[str, object]:
    """What both kernels must know of the cache when they are compiled.

    Args:
        k: [num_blocks, block_size, num_kv_heads, head_dim].
        v: the same, of equal strides.
        q: [num_tokens, num_heads, head_dim].
        window: keys that a token sees; None for all.
    """
    head_dim = q.shape[2]
    assert k.stride() == v.stride(), f"strides of keys {k.stride()} and values {v.stride()}"
    assert k.stride(3) == q.stride(2) == 1, f"strides of keys {k.stride()}, queries {q.stride()}"
    return {
        "BLOCK_SIZE": k.shape[1],
        "WINDOW": window or 0,
        "HEAD_DIM": head_dim,
        "DIMS": max(MIN_SIDE, triton.next_power_of_2(head_dim)),
        "GROUP": q.shape[1] // k.shape[2],
        # The interpreter multiplies bfloat16 as if its bits were integers.
        "DOT": tl.float32 if is_interpreted() else _TL_DTYPES[q.dtype],
    }
