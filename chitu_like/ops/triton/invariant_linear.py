"""y = x W^T whose rows do not depend on how many tokens there are, for infer.deterministic.

Libraries choose another kernel for every number of tokens, and with it another order of addition, so
that a request's logits change in their last bits with what shares its batch (He et al. 2025, "Defeating
nondeterminism in LLM inference"). Here the order is one: along the inputs, 16 at a time, into one
float32 accumulator an output. Tiles of different sizes only say which rows are computed together; no
split of the inputs, whatever that costs where there are few outputs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from chitu_like.ops.triton.paged_attention import is_interpreted

GROUP = 8
"""Tiles of tokens that walk along the weight together: their part of it stays in L2."""


class Tile(NamedTuple):
    """How the product is cut.

    Attributes:
        tokens: at least 64, so that every tile is multiplied by the same instruction (wgmma).
        outputs: of a program.
        inputs: taken at once, a multiple of 16.
        num_warps, num_stages: as Triton has them.
    """

    tokens: int
    outputs: int
    inputs: int
    num_warps: int
    num_stages: int


FEW = Tile(tokens=64, outputs=32, inputs=128, num_warps=4, num_stages=5)
MANY = Tile(tokens=128, outputs=128, inputs=64, num_warps=8, num_stages=3)
MANY_TOKENS = 256
"""From so many on MANY is used. Guesses, all of these: not measured yet."""


@triton.jit(do_not_specialize=["num_tokens"])
def _invariant_linear_kernel(
    x, weight, bias, out, num_tokens, num_outputs, num_inputs, x_stride,
    HAS_BIAS: tl.constexpr, IS_EVEN: tl.constexpr, TOKENS: tl.constexpr, OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr, GROUP: tl.constexpr, NUM_STAGES: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """One tile of tokens and outputs."""
    token_tiles = tl.cdiv(num_tokens, TOKENS)
    output_tiles = tl.cdiv(num_outputs, OUTPUTS)
    program = tl.program_id(0)
    group = program // (GROUP * output_tiles)
    group_size = tl.minimum(token_tiles - group * GROUP, GROUP)
    within = program % (GROUP * output_tiles)
    token = (group * GROUP + within % group_size) * TOKENS + tl.arange(0, TOKENS)
    output = within // group_size * OUTPUTS + tl.arange(0, OUTPUTS)
    is_token, is_output = token < num_tokens, output < num_outputs
    x_at = x + token.to(tl.int64)[:, None] * x_stride
    weight_at = weight + output.to(tl.int64)[None, :] * num_inputs
    sums = tl.zeros([TOKENS, OUTPUTS], tl.float32)
    for start in tl.range(0, num_inputs, INPUTS, num_stages=NUM_STAGES):
        inputs = start + tl.arange(0, INPUTS)
        x_mask, weight_mask = is_token[:, None], is_output[None, :]
        if not IS_EVEN:
            x_mask = x_mask & (inputs < num_inputs)[None, :]
            weight_mask = weight_mask & (inputs < num_inputs)[:, None]
        a = tl.load(x_at + inputs[None, :], mask=x_mask, other=0.0)
        b = tl.load(weight_at + inputs[:, None], mask=weight_mask, other=0.0)
        sums = tl.dot(a.to(DOT), b.to(DOT), sums, input_precision="ieee")
    if HAS_BIAS:
        sums += tl.load(bias + output, mask=is_output, other=0.0).to(tl.float32)[None, :]
    at = out + token.to(tl.int64)[:, None] * num_outputs + output[None, :]
    tl.store(at, sums.to(out.dtype.element_ty), mask=is_token[:, None] & is_output[None, :])


def invariant_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, tile: Tile | None = None
) -> Tensor:
    """A linear layer whose every output is a function of its own token's input alone.

    Args:
        x: [num_tokens, in_features], any stride between tokens.
        weight: [out_features, in_features], contiguous.
        bias: [out_features] or None.
        tile: how the product is cut; None: as the number of tokens says. Equal bits, whichever.

    Returns: [num_tokens, out_features], dtype of x.
    """
    num_tokens, (num_outputs, num_inputs) = len(x), weight.shape
    out = x.new_empty(num_tokens, num_outputs)
    if not num_tokens:
        return out
    tile = tile or (MANY if num_tokens >= MANY_TOKENS else FEW)
    x = x if x.stride(-1) == 1 else x.contiguous()
    grid = (triton.cdiv(num_tokens, tile.tokens) * triton.cdiv(num_outputs, tile.outputs),)
    _invariant_linear_kernel[grid](
        x, weight, bias, out, num_tokens, num_outputs, num_inputs, x.stride(0),
        HAS_BIAS=bias is not None,
        IS_EVEN=num_inputs % tile.inputs == 0,
        TOKENS=tile.tokens, OUTPUTS=tile.outputs, INPUTS=tile.inputs, GROUP=GROUP,
        NUM_STAGES=tile.num_stages, DOT=_dot_dtype(x.dtype),
        num_warps=tile.num_warps,
    )  # fmt: skip
    return out


def _dot_dtype(dtype: torch.dtype) -> tl.dtype:
    """What the product takes; the interpreter multiplies bfloat16 wrongly."""
    if is_interpreted():
        return tl.float32
    return {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}.get(dtype, tl.float32)
