"""Norms as modules."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from chitu_like.layers.options import LayerOptions
from chitu_like.ops.norm import add_rms_norm_op, layer_norm_op, rms_norm_op
from chitu_like.quantization.parameter import Shard, WeightParameter, stacked_layouts


def _vector(size: int, options: LayerOptions) -> WeightParameter:
    shape, layouts = stacked_layouts({None: Shard.whole(size)})
    return WeightParameter(torch.empty(shape, dtype=options.dtype, device=options.device), layouts)


class RMSNorm(nn.Module):
    """Root mean square norm over the last dimension.

    Args:
        size: of the last dimension.
        eps: added to the mean square.
        options: how layers are built.

    Attributes:
        weight: [size].
        eps: as given.
    """

    def __init__(self, size: int, eps: float, options: LayerOptions) -> None:
        super().__init__()
        self.weight = _vector(size, options)
        self.eps = eps
        self._norm = rms_norm_op.resolve(options.device, options.dtype, options.op_impl)
        self._add_norm = add_rms_norm_op.resolve(options.device, options.dtype, options.op_impl)
        self._summing = options.parallel.tp if options.norms_reduce else None

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Norm of x, or of residual + x, which `residual` then holds.

        With options.norms_reduce the x that is added is this rank's part of a sum, and may be
        overwritten; else x is not modified.
        """
        if residual is None:
            return self._norm(x, self.weight, self.eps)
        if self._summing is not None:
            return self._summing.all_reduce_add_rms_norm(x, residual, self.weight, self.eps)
        return self._add_norm(x, residual, self.weight, self.eps)


class LayerNorm(nn.Module):
    """Layer norm over the last dimension; arguments as RMSNorm.

    Args:
        size: of the last dimension.
        eps: added to the variance.
        has_weights: whether a weight and a bias follow the normalisation.
        options: how layers are built.
    """

    def __init__(self, size: int, eps: float, *, has_weights: bool, options: LayerOptions) -> None:
        super().__init__()
        self.weight = _vector(size, options) if has_weights else None
        self.bias = _vector(size, options) if has_weights else None
        self._eps = eps
        self._norm = layer_norm_op.resolve(options.device, options.dtype, options.op_impl)

    def forward(self, x: Tensor) -> Tensor:
        """Norm of x [num_tokens, size], not modified."""
        return self._norm(x, self.weight, self.bias, self._eps)
