"""A linear layer together with the norm in front of it and what stands behind it: the contract.

The reference says what is right; ops/triton/skinny_linear.py computes it in one kernel for few tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from chitu_like.ops.linear_tiles import Epilogue
from chitu_like.ops.norm import rms_norm


@dataclass(frozen=True, kw_only=True)
class Norm:
    """An RMSNorm.

    Attributes:
        weight: [in_features].
        eps: added to the mean square.
    """

    weight: Tensor
    eps: float


def fused_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    norm: Norm | None = None,
    epilogue: Epilogue = Epilogue.NONE,
    residual: Tensor | None = None,
) -> Tensor:
    """Norm, product, epilogue.

    Args:
        x: [num_tokens, in_features], not modified.
        weight: [out_features, in_features]; for SILU_AND_MUL the gate's outputs, then up's.
        bias: [out_features] or None.
        norm: of x, first; None for none.
        epilogue: see Epilogue.
        residual: [num_tokens, out_features], MODIFIED, and returned; for ADD alone.

    Returns: [num_tokens, out_features], half of them for SILU_AND_MUL; dtype of x. One kernel may
        leave out the roundings between the steps.
    """
    if norm is not None:
        x = rms_norm(x, norm.weight, norm.eps)
    y = F.linear(x, weight, bias)
    if epilogue is Epilogue.SILU_AND_MUL:
        gate, up = y.chunk(2, -1)
        return F.silu(gate).mul_(up)
    if epilogue is Epilogue.ADD:
        assert residual is not None, "Epilogue.ADD wants a residual"
        return residual.add_(y)
    return y
