"""A linear layer together with the norm in front of it and what stands behind it: the contract.

The reference says what is right; ops/triton/skinny_linear.py computes it in one kernel for few tokens.

A norm between two products, x / rms(x) * g, is computed by both. The first one, which writes x, knows
a few features of each token at a time: it writes x * g as well, and what it can say of the squares of
x. The second one multiplies with x * g and divides its products by rms(x).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from chitu_like.ops.linear_tiles import Epilogue


class Operand(NamedTuple):
    """What a product is of, or gives.

    Attributes:
        values: [num_tokens, num_features].
        squares: None; or [num_parts, num_tokens] float32 where an RMSNorm is begun: `values` are
            x * g in the dtype of x, and these add up to the sums of the squares of x.
    """

    values: Tensor
    squares: Tensor | None = None


def begin_norm(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """All of an RMSNorm but the division.

    Args:
        x: [num_tokens, num_features], not modified.
        weight: [num_features].

    Returns: an Operand's values and squares, these in one part.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * weight).to(x.dtype), wide.square().sum(-1)[None]


def fused_linear(
    x: Operand,
    weight: Tensor,
    bias: Tensor | None,
    *,
    eps: float = 0.0,
    epilogue: Epilogue = Epilogue.NONE,
    residual: Tensor | None = None,
    norm_weight: Tensor | None = None,
) -> Operand:
    """The rest of a norm, product, epilogue, the beginning of a norm.

    Args:
        x: values [num_tokens, in_features], not modified.
        weight: [out_features, in_features]; for SILU_AND_MUL the gate's outputs, then up's.
        bias: [out_features] or None.
        eps: of the norm that x begins, added to the mean square.
        epilogue: see Epilogue.
        residual: [num_tokens, out_features], MODIFIED; for ADD alone.
        norm_weight: [out_features], of the norm that is begun behind ADD; None for none.

    Returns: values [num_tokens, out_features], half of them for SILU_AND_MUL; for ADD the residual
        itself or, with `norm_weight`, the norm of it that is begun. One kernel may leave out the
        roundings between the steps.
    """
    y = F.linear(x.values, weight)
    if x.squares is not None:
        mean_square = x.squares.sum(0) / x.values.shape[1]
        y = (y * torch.rsqrt(mean_square + eps)[:, None]).to(y.dtype)
    if bias is not None:
        y = y + bias
    if epilogue is Epilogue.SILU_AND_MUL:
        gate, up = y.chunk(2, -1)
        return Operand(F.silu(gate).mul_(up))
    if epilogue is Epilogue.ADD:
        assert residual is not None, "Epilogue.ADD wants a residual"
        residual.add_(y)
        if norm_weight is not None:
            return Operand(*begin_norm(residual, norm_weight))
        return Operand(residual)
    return Operand(y)
