"""Normalisation of each token, with the residual addition that comes before it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from chitu_like.ops.registry import Op


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Divide each token by its root mean square (Zhang and Sennrich 2019, arXiv:1910.07467).

    Args:
        x: [..., hidden_size], any float dtype, not modified; the mean is taken in float32.
        weight: [hidden_size].
        eps: added to the mean square.

    Returns: shape and dtype of x.
    """
    return F.rms_norm(x, weight.shape, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Add `x` to `residual` IN PLACE and return the sum's rms_norm.

    Args:
        x: [num_tokens, hidden_size], not modified.
        residual: shape and dtype of x; holds the sum afterwards, rounded to its dtype.
        weight: [hidden_size].
        eps: added to the mean square.

    Returns: [num_tokens, hidden_size], dtype of x.
    """
    return F.rms_norm(residual.add_(x), weight.shape, weight, eps)


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Shift each token to mean 0 and scale it to variance 1 (Ba et al. 2016, arXiv:1607.06450).

    Args:
        x: [num_tokens, hidden_size], any float dtype, not modified.
        weight: [hidden_size], or None.
        bias: the same.
        eps: added to the variance.

    Returns: [num_tokens, hidden_size], dtype of x.
    """
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


rms_norm_op = Op("rms_norm", rms_norm)
add_rms_norm_op = Op("add_rms_norm", add_rms_norm)
layer_norm_op = Op("layer_norm", layer_norm)
