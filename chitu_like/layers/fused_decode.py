"""A decoder layer of few tokens as four products with everything else around them in the same kernel.

The ordinary layer adds and normalises in a kernel of its own before each half, and multiplies gate and
up in another. Here a layer is

    [norm, qkv]   attention   [o, add, norm]   [norm, gate_up, SiLU, mul]   [down, add, norm]

and the residual stream is complete between the brackets. A norm is begun by the product that writes the
stream and finished by the one that reads it: see ops/linear_fused.py. That pays only where the kernels
together are faster, which the table of measurements decides, by number of tokens. Where it says nothing,
and for quantised layers, several ranks, activations other than SiLU and infer.deterministic, there is no
FusedDecode and a layer computes as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from chitu_like.layers.linear import Linear
from chitu_like.layers.norm import RMSNorm
from chitu_like.layers.options import LayerOptions
from chitu_like.ops.linear import FewTokens, skinny_kernel
from chitu_like.ops.linear_fused import Operand
from chitu_like.ops.linear_table import LinearTable, TableRow, table_for
from chitu_like.ops.linear_tiles import (
    BUCKETS,
    MAX_TOKENS,
    Epilogue,
    LinearWork,
    SkinnyTile,
    token_bucket,
)
from chitu_like.quantization.base import Unquantized

Attend = Callable[[Tensor], Tensor]
"""Queries, keys and values [num_tokens, qkv_features], as the product gave them, head norms and
rotation still to come -> what attention gives the output projection [num_tokens, o_features]."""

NORM_LINEAR = LinearWork(has_norm=True)
NORM_GATE_UP = LinearWork(has_norm=True, epilogue=Epilogue.SILU_AND_MUL)
LINEAR_ADD = LinearWork(epilogue=Epilogue.ADD)


class MakeKernel(Protocol):
    """What binds a weight to a tile; linear.skinny_kernel but in tests."""

    def __call__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        tile: SkinnyTile,
        *,
        eps: float = 0.0,
        epilogue: Epilogue = Epilogue.NONE,
        norm_weight: Tensor | None = None,
    ) -> FewTokens:
        """The kernel."""
        ...


@dataclass(frozen=True, kw_only=True)
class LayerParts:
    """What a decoder layer is made of, loaded.

    Attributes:
        input_norm: before attention.
        qkv_proj, o_proj: around it.
        post_norm: before the MLP.
        gate_up_proj, down_proj: of the MLP.
    """

    input_norm: RMSNorm
    qkv_proj: Linear
    o_proj: Linear
    post_norm: RMSNorm
    gate_up_proj: Linear
    down_proj: Linear

    @property
    def products(self) -> tuple[tuple[LinearWork, Linear, RMSNorm | None], ...]:
        """The four products in their order, with the norm that each finishes."""
        return (
            (NORM_LINEAR, self.qkv_proj, self.input_norm),
            (LINEAR_ADD, self.o_proj, None),
            (NORM_GATE_UP, self.gate_up_proj, self.post_norm),
            (LINEAR_ADD, self.down_proj, None),
        )


class FusedLayer:
    """One layer for one bucket of tokens.

    Args:
        kernels: of the four products.
    """

    __slots__ = ("_down", "_gate_up", "_o", "_qkv")

    def __init__(self, kernels: Sequence[FewTokens]) -> None:
        self._qkv, self._o, self._gate_up, self._down = kernels

    def __call__(self, x: Operand, residual: Tensor, attend: Attend) -> Operand:
        """Compute the layer.

        Args:
            x: [num_tokens, hidden_size], the norm of `residual`, begun or complete.
            residual: the same shape; MODIFIED: the stream behind the layer.
            attend: the layer's attention.

        Returns: the next layer's `x`; behind the last one `residual`.
        """
        attended = attend(self._qkv(x, None).values)
        x = self._o(Operand(attended), residual)
        return self._down(self._gate_up(x, None), residual)


class FusedDecode:
    """The layers of a model for the numbers of tokens where fusing pays; made once after loading.

    Args:
        layers: by linear_tiles.BUCKETS, in the model's order.
    """

    def __init__(self, layers: Mapping[int, Sequence[FusedLayer]]) -> None:
        self._layers = layers

    @classmethod
    def build(
        cls,
        layers: Sequence[LayerParts],
        *,
        activation: str,
        options: LayerOptions,
        table: LinearTable | None = None,
        make_kernel: MakeKernel = skinny_kernel,
    ) -> FusedDecode | None:
        """What pays by the table, or None for nothing.

        Args:
            layers: all of this rank's, in their order; each adds what its two halves give to the
                stream as it is.
            activation: of the MLP, as config.json names it.
            options: how the layers were built.
            table: measurements; None for the device's own.
            make_kernel: binds a weight to a tile.
        """
        if not _can_fuse(activation, options):
            return None
        table = table_for(options.device) if table is None else table
        next_norms = [*(parts.input_norm for parts in layers[1:]), None]
        fused = {}
        for bucket in BUCKETS:
            tiles = [_paying_tiles(parts, table, bucket) for parts in layers]
            if layers and all(tiles):
                fused[bucket] = [
                    FusedLayer(_bind(parts, norm, of_layer, make_kernel))
                    for parts, norm, of_layer in zip(layers, next_norms, tiles, strict=True)
                ]
        return cls(fused) if fused else None

    def layers_for(self, num_tokens: int) -> Sequence[FusedLayer] | None:
        """The fused layers to take a batch through, or None where the ordinary ones are faster."""
        if not 0 < num_tokens <= MAX_TOKENS:
            return None
        return self._layers.get(token_bucket(num_tokens))


def _can_fuse(activation: str, options: LayerOptions) -> bool:
    return (
        activation in ("silu", "swish")
        and options.parallel.tp_size == 1
        and options.op_impl in ("auto", "triton")
        and isinstance(options.quant_method, Unquantized)
        and not options.quant_method.is_invariant
    )


def _paying_tiles(parts: LayerParts, table: LinearTable, num_tokens: int) -> list[SkinnyTile]:
    """Tiles of the four products, if all were measured and are faster together; else none."""
    rows: list[TableRow] = []
    for work, linear, _ in parts.products:
        row = table.row(work, linear.weight.data, num_tokens)
        if row is None or not linear.weight.data.is_contiguous():
            return []
        rows.append(row)
    if sum(row.tile_us for row in rows) >= sum(row.other_us for row in rows):
        return []
    return [row.tile for row in rows]


def _bind(
    parts: LayerParts,
    next_norm: RMSNorm | None,
    tiles: Sequence[SkinnyTile],
    make_kernel: MakeKernel,
) -> list[FewTokens]:
    begun = (None, parts.post_norm, None, next_norm)
    return [
        make_kernel(
            linear.weight.data,
            None if linear.bias is None else linear.bias.data,
            tile,
            eps=0.0 if finished is None else finished.eps,
            epilogue=work.epilogue,
            norm_weight=None if norm is None else norm.weight.data,
        )
        for (work, linear, finished), norm, tile in zip(parts.products, begun, tiles, strict=True)
    ]
