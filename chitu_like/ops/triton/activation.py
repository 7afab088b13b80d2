"""Gated activations, one program a piece of a row: bound by memory, whatever the activation."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from chitu_like.ops.activation import act_and_mul_op
from chitu_like.ops.triton.launch import dependent_launch, serves, wait_for_previous

BLOCK = 1024  # elements of a program, and its warps: guesses, not measured yet
NUM_WARPS = 4

_FORMULAS = {
    "gelu": "gelu",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


@triton.jit
def _activate(x, FORMULA: tl.constexpr):
    """Activation of float32 values."""
    if FORMULA == "silu":
        return x * tl.sigmoid(x)
    elif FORMULA == "gelu":
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif FORMULA == "gelu_tanh":  # (1 + tanh(y)) / 2 = sigmoid(2 y)
        return x * tl.sigmoid(1.5957691216057308 * x * (1.0 + 0.044715 * x * x))
    else:
        tl.static_assert(FORMULA == "relu")
        return tl.maximum(x, 0.0)


@triton.jit
def _act_and_mul_kernel(
    x, out, row_stride,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, FORMULA: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """BLOCK elements of one row."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = lane < WIDTH
    wait_for_previous(PDL)
    at = x + row * row_stride + lane
    gate = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(at + WIDTH, mask=mask, other=0.0).to(tl.float32)
    product = _activate(gate, FORMULA) * up
    tl.store(out + row * WIDTH + lane, product.to(out.dtype.element_ty), mask=mask)


@act_and_mul_op.register("triton", supports=serves)
def act_and_mul(x: Tensor, activation: str) -> Tensor:
    """See ops/activation.py; rows may lie apart, their elements not."""
    assert x.stride(-1) == 1, x.stride()
    num_tokens, width = x.shape[0], x.shape[1] // 2
    out = torch.empty(num_tokens, width, dtype=x.dtype, device=x.device)
    _act_and_mul_kernel[(num_tokens, triton.cdiv(width, BLOCK))](
        x, out, x.stride(0),
        WIDTH=width, BLOCK=BLOCK, FORMULA=_FORMULAS[activation], num_warps=NUM_WARPS,
        **dependent_launch(x.device),
    )  # fmt: skip
    return out
