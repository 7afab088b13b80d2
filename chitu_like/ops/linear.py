"""Linear kernels: how a weight matrix, once loaded, is multiplied with activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from chitu_like.ops.linear_cpu import PackedLinear, can_pack
from chitu_like.ops.linear_fused import Operand
from chitu_like.ops.linear_table import LinearTable, table_for
from chitu_like.ops.linear_tiles import (
    BUCKETS,
    MAX_TOKENS,
    Epilogue,
    LinearWork,
    SkinnyTile,
    token_bucket,
)


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


FewTokens = Callable[[Operand, Tensor | None], Operand]
"""The skinny kernel with a weight: tokens, and the residual they are added to or None -> outputs."""


class TabledLinear:
    """torch's own product, but the skinny kernel for the numbers of tokens where it is faster.

    What is taken depends on the number of tokens alone, so a captured call stays what it was.

    Args:
        weight: [out_features, in_features].
        bias: [out_features] or None.
        kernels: by linear_tiles.BUCKETS.
    """

    reads_weight = True
    __slots__ = ("_kernels", "_plain")

    def __init__(self, weight: Tensor, bias: Tensor | None, kernels: dict[int, FewTokens]) -> None:
        self._plain = PlainLinear(weight, bias)
        self._kernels = kernels

    def __call__(self, x: Tensor) -> Tensor:
        """See LinearKernel."""
        if x.dim() == 2 and 0 < len(x) <= MAX_TOKENS:
            kernel = self._kernels.get(token_bucket(len(x)))
            if kernel is not None:
                return kernel(Operand(x), None).values
        return self._plain(x)


class InvariantLinear:
    """A product whose rows do not depend on how many there are, for infer.deterministic.

    Wants Triton and a CUDA device; see ops/triton/invariant_linear.py.

    Args:
        weight: [out_features, in_features], contiguous.
        bias: [out_features] or None.
    """

    reads_weight = True
    __slots__ = ("_bias", "_linear", "_weight")

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        from chitu_like.ops.triton.invariant_linear import invariant_linear

        assert weight.is_contiguous(), f"strides of the weight {weight.stride()}"
        self._linear, self._weight, self._bias = invariant_linear, weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        """See LinearKernel."""
        return self._linear(x, self._weight, self._bias)


def make_linear_kernel(weight: Tensor, bias: Tensor | None) -> LinearKernel:
    """The fastest kernel for this weight, its dtype and device.

    Args:
        weight: [out_features, in_features], final values.
        bias: [out_features] or None.
    """
    if can_pack(weight):
        return PackedLinear(weight, bias)
    return tabled_linear(weight, bias, table_for(weight.device))


def tabled_linear(weight: Tensor, bias: Tensor | None, table: LinearTable) -> LinearKernel:
    """What a table says of this weight: torch's product where it says nothing."""
    tiles = {}
    for bucket in BUCKETS if weight.is_contiguous() else ():
        tile = table.faster_tile(LinearWork(), weight, bucket)
        if tile is not None:
            tiles[bucket] = tile
    if not tiles:
        return PlainLinear(weight, bias)
    kernels = {bucket: skinny_kernel(weight, bias, tile) for bucket, tile in tiles.items()}
    return TabledLinear(weight, bias, kernels)


def skinny_kernel(
    weight: Tensor,
    bias: Tensor | None,
    tile: SkinnyTile,
    *,
    eps: float = 0.0,
    epilogue: Epilogue = Epilogue.NONE,
    norm_weight: Tensor | None = None,
) -> FewTokens:
    """The skinny kernel with a weight; see ops/triton/skinny_linear.py. Wants Triton."""
    from chitu_like.ops.triton.skinny_linear import SkinnyLinear

    return SkinnyLinear(weight, bias, tile, eps=eps, epilogue=epilogue, norm_weight=norm_weight)
