"""Linear kernels: how a weight matrix, once loaded, is multiplied with activations."""

from __future__ import annotations

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from chitu_like.ops.linear_cpu import PackedLinear, can_pack


class LinearKernel(Protocol):
    """A weight, and a bias or none, ready to be multiplied with; made once after loading."""

    @property
    def reads_weight(self) -> bool:
        """It reads the tensor it was made from; if not, that tensor's memory may be freed."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """X [num_tokens, in_features] -> [num_tokens, out_features], dtype of x; x stays as it is."""
        ...


class PlainLinear:
    """torch's own product."""

    reads_weight = True
    __slots__ = ("_bias", "_weight")

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = weight
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        """See LinearKernel."""
        return F.linear(x, self._weight, self._bias)


def make_linear_kernel(weight: Tensor, bias: Tensor | None) -> LinearKernel:
    """The fastest kernel for this weight, its dtype and device.

    Args:
        weight: [out_features, in_features], final values.
        bias: [out_features] or None.
    """
    return PackedLinear(weight, bias) if can_pack(weight) else PlainLinear(weight, bias)
