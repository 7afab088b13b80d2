"""The contract of a quantization scheme, and the scheme that does nothing.

Linear layers decide WHERE a shard is; a QuantMethod decides HOW it is stored and multiplied.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import nn

from chitu_like.ops.linear import InvariantLinear, LinearKernel, make_linear_kernel
from chitu_like.quantization.parameter import Part, Shard, WeightParameter, stacked_layouts


class QuantizableLayer(nn.Module):
    """What a QuantMethod may touch of a linear layer.

    Attributes:
        weight: declared by `create_weights`; a scheme may declare more parameters beside it.
        bias: [out_features] on this rank, never quantised, or None.
        shares_weight: another module uses `weight` too (a tied head), so it must stay as it is.
        kernel: what forward calls; there once `process_after_load` ran.
    """

    weight: WeightParameter
    bias: WeightParameter | None
    shares_weight: bool
    kernel: LinearKernel


class QuantMethod(Protocol):
    """How linear weights are stored and multiplied."""

    def create_weights(
        self,
        layer: QuantizableLayer,
        outputs: Mapping[Part, Shard],
        inputs: Shard,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Give `layer` its uninitialised parameters.

        Args:
            layer: gets a `weight`, and whatever else the scheme stores.
            outputs: the stacked parts along out_features, and this rank's share of each.
            inputs: this rank's share of in_features.
            dtype: of the activations.
            device: of the parameters.
        """
        ...

    def process_after_load(self, layer: QuantizableLayer) -> LinearKernel:
        """Bring the loaded parameters into their final form; returns what multiplies with them."""
        ...


class Unquantized:
    """Weights in the dtype of the activations.

    Args:
        is_invariant: a token's outputs never depend on what shares its batch (infer.deterministic);
            else the fastest kernel for each number of tokens is taken.

    Attributes:
        is_invariant: as given.
    """

    def __init__(self, *, is_invariant: bool = False) -> None:
        self.is_invariant = is_invariant

    def create_weights(
        self,
        layer: QuantizableLayer,
        outputs: Mapping[Part, Shard],
        inputs: Shard,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """See QuantMethod: one matrix [out_features, in_features]."""
        shape, layouts = stacked_layouts(outputs, (inputs,))
        layer.weight = WeightParameter(torch.empty(shape, dtype=dtype, device=device), layouts)

    def process_after_load(self, layer: QuantizableLayer) -> LinearKernel:
        """See QuantMethod: frees the parameter where the kernel has its own copy."""
        make_kernel = InvariantLinear if self.is_invariant else make_linear_kernel
        kernel: LinearKernel = make_kernel(
            layer.weight.data, layer.bias.data if layer.bias is not None else None
        )
        if not kernel.reads_weight and not layer.shares_weight:
            layer.weight.data = layer.weight.data.new_empty(0)
        return kernel
