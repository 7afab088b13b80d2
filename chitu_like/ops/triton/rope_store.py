"""Head norms, rotation and KV store in one kernel, which reads qkv once and writes q and the cache.

One program takes HEADS heads of one token, all queries, all keys or all values. A head takes the same
threads in every batch, so its sum of squares is added up in the same order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from chitu_like.ops.rope_store import HeadNorms, qk_norm_rope_store_op
from chitu_like.ops.rotary import Rotation
from chitu_like.ops.triton.launch import dependent_launch, serves, wait_for_previous

HEADS = 8  # of a program; a guess, not measured yet


@triton.jit
def _load_turned(
    heads, dims, mask, weight, cos, sin, eps,
    HEAD_DIM: tl.constexpr, ROTARY_DIM: tl.constexpr, INTERLEAVED: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Heads [HEADS, DIMS] in float32, normalised unless weight is None, and rotated.

    A component's partner is read again, from the cache of the multiprocessor. The weight is read
    before the kernel waits: since its last use all other weights have passed through the L2 cache.
    """
    half: tl.constexpr = ROTARY_DIM // 2
    is_turned = dims < ROTARY_DIM
    partner = dims ^ 1 if INTERLEAVED else tl.where(dims < half, dims + half, dims - half)
    if weight is not None:
        gain = tl.load(weight + dims, mask=dims < HEAD_DIM, other=0.0).to(tl.float32)
        other_gain = tl.load(weight + partner, mask=is_turned, other=0.0).to(tl.float32)
    wait_for_previous(PDL)
    x = tl.load(heads + dims, mask=mask, other=0.0).to(tl.float32)
    other = tl.load(heads + partner, mask=mask & is_turned, other=0.0).to(tl.float32)
    if weight is not None:
        scale = tl.rsqrt(tl.sum(x * x, axis=1) / HEAD_DIM + eps)[:, None]
        x *= scale * gain
        other *= scale * other_gain
    turn_cos = tl.load(cos + dims, mask=is_turned, other=1.0).to(tl.float32)
    turn_sin = tl.load(sin + dims, mask=is_turned, other=0.0).to(tl.float32)
    return x * turn_cos + other * turn_sin


@triton.jit
def _rope_store_kernel(
    qkv, q_out, k_cache, v_cache, slot_mapping, cos, sin, q_weight, k_weight, eps, token_stride,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    ROTARY_DIM: tl.constexpr, INTERLEAVED: tl.constexpr,
    HEADS: tl.constexpr, DIMS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One token's heads of one kind."""
    q_programs: tl.constexpr = (NUM_HEADS + HEADS - 1) // HEADS
    kv_programs: tl.constexpr = (NUM_KV_HEADS + HEADS - 1) // HEADS
    token = tl.program_id(0).to(tl.int64)
    program = tl.program_id(1)
    row = tl.arange(0, HEADS)[:, None]
    dims = tl.arange(0, DIMS)[None, :]
    cos += token * ROTARY_DIM
    sin += token * ROTARY_DIM
    q = qkv + token * token_stride
    k = q + NUM_HEADS * HEAD_DIM
    v = k + NUM_KV_HEADS * HEAD_DIM
    if program < q_programs:
        head = program * HEADS + row
        mask = (head < NUM_HEADS) & (dims < HEAD_DIM)
        turned = _load_turned(
            q + head * HEAD_DIM, dims, mask, q_weight, cos, sin, eps,
            HEAD_DIM, ROTARY_DIM, INTERLEAVED, PDL,
        )  # fmt: skip
        at = token * (NUM_HEADS * HEAD_DIM) + head * HEAD_DIM + dims
        tl.store(q_out + at, turned.to(q_out.dtype.element_ty), mask=mask)
    else:
        head = (program - q_programs) % kv_programs * HEADS + row
        mask = (head < NUM_KV_HEADS) & (dims < HEAD_DIM)
        in_slot = head * HEAD_DIM + dims
        if program < q_programs + kv_programs:
            turned = _load_turned(
                k + head * HEAD_DIM, dims, mask, k_weight, cos, sin, eps,
                HEAD_DIM, ROTARY_DIM, INTERLEAVED, PDL,
            )  # fmt: skip
            at = tl.load(slot_mapping + token) * (NUM_KV_HEADS * HEAD_DIM) + in_slot
            tl.store(k_cache + at, turned.to(k_cache.dtype.element_ty), mask=mask)
        else:
            wait_for_previous(PDL)
            at = tl.load(slot_mapping + token) * (NUM_KV_HEADS * HEAD_DIM) + in_slot
            value = tl.load(v + head * HEAD_DIM + dims, mask=mask)
            tl.store(v_cache + at, value.to(v_cache.dtype.element_ty), mask=mask)


@qk_norm_rope_store_op.register("triton", supports=serves)
def qk_norm_rope_store(
    qkv: Tensor,
    norms: HeadNorms | None,
    angles: Rotation,
    interleaved: bool,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
) -> Tensor:
    """See ops/rope_store.py; leaves qkv as it is."""
    assert qkv.stride(-1) == 1, qkv.stride()
    num_kv_heads, head_dim = k_cache.shape[-2:]
    num_heads = qkv.shape[1] // head_dim - 2 * num_kv_heads
    q_out = torch.empty(len(qkv), num_heads, head_dim, dtype=qkv.dtype, device=qkv.device)
    q_weight, k_weight, eps = norms or (None, None, 0.0)
    dims = triton.next_power_of_2(head_dim)
    num_programs = triton.cdiv(num_heads, HEADS) + 2 * triton.cdiv(num_kv_heads, HEADS)
    _rope_store_kernel[(len(qkv), num_programs)](
        qkv, q_out, k_cache, v_cache, slot_mapping, *angles, q_weight, k_weight, eps,
        qkv.stride(0),
        NUM_HEADS=num_heads, NUM_KV_HEADS=num_kv_heads, HEAD_DIM=head_dim,
        ROTARY_DIM=angles.cos.shape[-1], INTERLEAVED=interleaved, HEADS=HEADS, DIMS=dims,
        num_warps=max(1, HEADS * dims // 128),  # four elements a thread
        **dependent_launch(qkv.device),
    )  # fmt: skip
    return q_out
