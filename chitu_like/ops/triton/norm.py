"""Norms, one program a row: it reads the row once and keeps it in registers.

How many warps share a row follows from its length alone, so a row's sum is added up in the same
order in every batch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from chitu_like.ops.norm import add_rms_norm_op, layer_norm_op, rms_norm_op
from chitu_like.ops.triton.launch import dependent_launch, serves, wait_for_previous

WARP_BYTES = 32 * 16  # a vector a thread
MAX_WARPS = 16


def row_constants(x: Tensor) -> dict[str, int]:
    """WIDTH, BLOCK and num_warps for the rows of x [..., width]."""
    width = x.shape[-1]
    block = triton.next_power_of_2(width)
    num_warps = max(1, min(MAX_WARPS, block * x.itemsize // WARP_BYTES))
    return {"WIDTH": width, "BLOCK": block, "num_warps": num_warps}


@triton.jit
def scale_to_rms(x, weight, eps, WIDTH: tl.constexpr):
    """Norm of a row in float32 [BLOCK], zeros behind its end; weight: the same."""
    return x * tl.rsqrt(tl.sum(x * x, axis=0) / WIDTH + eps) * weight


@triton.jit
def _rms_norm_kernel(
    x, weight, out, eps, row_stride, inner_stride,
    INNER: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One row of x [rows / INNER, INNER, WIDTH]."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    mask = lane < WIDTH
    scale = tl.load(weight + lane, mask=mask, other=0.0).to(tl.float32)
    wait_for_previous(PDL)
    at = row // INNER * row_stride + row % INNER * inner_stride + lane
    values = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    normed = scale_to_rms(values, scale, eps, WIDTH)
    tl.store(out + row * WIDTH + lane, normed.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _add_rms_norm_kernel(
    x, residual, weight, out, eps, x_stride, residual_stride,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One row."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    mask = lane < WIDTH
    scale = tl.load(weight + lane, mask=mask, other=0.0).to(tl.float32)
    wait_for_previous(PDL)
    stream_at = residual + row * residual_stride + lane
    added = tl.load(x + row * x_stride + lane, mask=mask, other=0.0).to(tl.float32)
    stream = tl.load(stream_at, mask=mask, other=0.0).to(tl.float32) + added
    stream = stream.to(residual.dtype.element_ty)
    tl.store(stream_at, stream, mask=mask)
    normed = scale_to_rms(stream.to(tl.float32), scale, eps, WIDTH)
    tl.store(out + row * WIDTH + lane, normed.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _layer_norm_kernel(
    x, weight, bias, out, eps, row_stride,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One row; weight and bias may be None."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    mask = lane < WIDTH
    wait_for_previous(PDL)
    values = tl.load(x + row * row_stride + lane, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(values, axis=0) / WIDTH
    centred = tl.where(mask, values - mean, 0.0)
    normed = centred * tl.rsqrt(tl.sum(centred * centred, axis=0) / WIDTH + eps)
    if weight is not None:
        normed *= tl.load(weight + lane, mask=mask, other=0.0).to(tl.float32)
    if bias is not None:
        normed += tl.load(bias + lane, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row * WIDTH + lane, normed.to(out.dtype.element_ty), mask=mask)


@rms_norm_op.register("triton", supports=serves)
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See ops/norm.py; of three dimensions the first two may have any strides."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows = x if x.dim() == 3 else x.reshape(-1, 1, x.shape[-1])
    if rows.stride(-1) != 1:
        rows = rows.contiguous()
    _rms_norm_kernel[(rows.shape[0] * rows.shape[1],)](
        rows, weight, out, eps, rows.stride(0), rows.stride(1),
        INNER=rows.shape[1], **row_constants(x), **dependent_launch(x.device),
    )  # fmt: skip
    return out


@add_rms_norm_op.register("triton", supports=serves)
def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See ops/norm.py; rows may lie apart, their elements not."""
    assert x.stride(-1) == residual.stride(-1) == 1, (x.stride(), residual.stride())
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _add_rms_norm_kernel[(len(x),)](
        x, residual, weight, out, eps, x.stride(0), residual.stride(0),
        **row_constants(x), **dependent_launch(x.device),
    )  # fmt: skip
    return out


@layer_norm_op.register("triton", supports=serves)
def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """See ops/norm.py; rows may lie apart, their elements not."""
    assert x.stride(-1) == 1, x.stride()
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _layer_norm_kernel[(len(x),)](
        x, weight, bias, out, eps, x.stride(0), **row_constants(x), **dependent_launch(x.device)
    )
    return out
