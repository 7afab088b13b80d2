"""The rotation of a batch's positions in one kernel."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from chitu_like.ops.rotary import Rotation, rotation_op
from chitu_like.ops.triton.launch import dependent_launch, serves, wait_for_previous

TOKENS = 4  # of a program, a warp each: a guess, not measured yet


@triton.jit(do_not_specialize=["positions", "num_tokens"])
def _rotation_kernel(
    positions, frequencies, cos, sin, num_tokens, scale, frequency_stride,
    HALF: tl.constexpr, PAIRS: tl.constexpr, TOKENS: tl.constexpr, INTERLEAVED: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """TOKENS tokens; each angle is written at both components of its pair."""
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)[:, None]
    pair = tl.arange(0, PAIRS)[None, :]
    mask = (token < num_tokens) & (pair < HALF)
    wait_for_previous(PDL)
    position = tl.load(positions + token, mask=token < num_tokens, other=0).to(tl.float32)
    frequency = tl.load(frequencies + token * frequency_stride + pair, mask=mask, other=0.0)
    angle = position * frequency
    turn_cos = (tl.cos(angle) * scale).to(cos.dtype.element_ty)
    turn_sin = tl.sin(angle) * scale
    if INTERLEAVED:
        first = token * (2 * HALF) + 2 * pair
        second = first + 1
    else:
        first = token * (2 * HALF) + pair
        second = first + HALF
    tl.store(cos + first, turn_cos, mask=mask)
    tl.store(cos + second, turn_cos, mask=mask)
    tl.store(sin + first, (-turn_sin).to(sin.dtype.element_ty), mask=mask)
    tl.store(sin + second, turn_sin.to(sin.dtype.element_ty), mask=mask)


@rotation_op.register("triton", supports=serves)
def rotation(
    positions: Tensor, frequencies: Tensor, *, interleaved: bool, scale: float, dtype: torch.dtype
) -> Rotation:
    """See ops/rotary.py."""
    num_tokens, half = len(positions), frequencies.shape[-1]
    shape = (num_tokens, 1, 2 * half)
    cos, sin = (torch.empty(shape, dtype=dtype, device=positions.device) for _ in range(2))
    _rotation_kernel[(triton.cdiv(num_tokens, TOKENS),)](
        positions, frequencies, cos, sin, num_tokens, scale,
        half if frequencies.dim() == 2 else 0,
        HALF=half, PAIRS=triton.next_power_of_2(half), TOKENS=TOKENS, INTERLEAVED=interleaved,
        num_warps=TOKENS, **dependent_launch(positions.device),
    )  # fmt: skip
    return Rotation(cos, sin)
