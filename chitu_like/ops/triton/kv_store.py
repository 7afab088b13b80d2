"""Keys and values into the paged cache: one program a token and some of its heads."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from chitu_like.ops.kv_store import kv_store_op
from chitu_like.ops.triton.launch import dependent_launch, serves, wait_for_previous

HEADS = 8  # of a program; a guess, not measured yet


@triton.jit
def _kv_store_kernel(
    k, v, k_cache, v_cache, slot_mapping,
    k_token_stride, k_head_stride, v_token_stride, v_head_stride,
    NUM_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    HEADS: tl.constexpr, DIMS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """[HEADS, HEAD_DIM] of one token's key and value."""
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]
    dims = tl.arange(0, DIMS)[None, :]
    mask = (head < NUM_HEADS) & (dims < HEAD_DIM)
    wait_for_previous(PDL)
    slot = tl.load(slot_mapping + token)
    at = slot * (NUM_HEADS * HEAD_DIM) + head * HEAD_DIM + dims
    key = tl.load(k + token * k_token_stride + head * k_head_stride + dims, mask=mask)
    value = tl.load(v + token * v_token_stride + head * v_head_stride + dims, mask=mask)
    tl.store(k_cache + at, key.to(k_cache.dtype.element_ty), mask=mask)
    tl.store(v_cache + at, value.to(v_cache.dtype.element_ty), mask=mask)


@kv_store_op.register("triton", supports=serves)
def kv_store(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor) -> None:
    """See ops/kv_store.py."""
    num_tokens, num_heads, head_dim = k.shape
    dims = triton.next_power_of_2(head_dim)
    _kv_store_kernel[(num_tokens, triton.cdiv(num_heads, HEADS))](
        k, v, k_cache, v_cache, slot_mapping, *k.stride()[:2], *v.stride()[:2],
        NUM_HEADS=num_heads, HEAD_DIM=head_dim, HEADS=HEADS, DIMS=dims,
        num_warps=max(1, HEADS * dims // 256), **dependent_launch(k.device),
    )  # fmt: skip
