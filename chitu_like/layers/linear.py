"""Linear layers that know which rows or columns of the full matrix this rank holds.

Four layers on one base: the base builds parameters, kernel and product; each layer only says what
its shards are. Weights are usable after `process_after_load`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from chitu_like.layers.options import LayerOptions
from chitu_like.quantization.base import QuantizableLayer
from chitu_like.quantization.parameter import Part, Shard, WeightParameter, stacked_layouts


class Linear(QuantizableLayer):
    """y = x W^T + b, of which this rank holds a shard.

    Args:
        outputs: the stacked parts along out_features, and this rank's share of each.
        inputs: this rank's share of in_features.
        has_bias: whether there is a bias, sharded like the outputs.
        options: how layers are built.
    """

    def __init__(
        self,
        outputs: Mapping[Part, Shard],
        inputs: Shard,
        *,
        has_bias: bool,
        options: LayerOptions,
    ) -> None:
        super().__init__()
        self._quant_method = options.quant_method
        self.shares_weight = False
        options.quant_method.create_weights(
            self, outputs, inputs, dtype=options.dtype, device=options.device
        )
        self.bias = None
        if has_bias:
            shape, layouts = stacked_layouts(outputs)
            empty = torch.empty(shape, dtype=options.dtype, device=options.device)
            self.bias = WeightParameter(empty, layouts)

    def process_after_load(self) -> None:
        """Make the kernel; call once, when the weights have their final values."""
        self.kernel = self._quant_method.process_after_load(self)

    def forward(self, x: Tensor) -> Tensor:
        """X [num_tokens, in_features of this rank] -> [num_tokens, out_features of this rank]."""
        return self.kernel(x)


class ReplicatedLinear(Linear):
    """Every rank holds the whole matrix."""

    def __init__(
        self, in_features: int, out_features: int, *, has_bias: bool, options: LayerOptions
    ) -> None:
        outputs: dict[Part, Shard] = {None: Shard.whole(out_features)}
        super().__init__(outputs, Shard.whole(in_features), has_bias=has_bias, options=options)


class MergedColumnParallelLinear(Linear):
    """Several matrices on one input, stacked; each rank holds some outputs of each.

    The checkpoint's tensors are its parts 0, 1, ...; a single matrix is just the whole.
    """

    def __init__(
        self, in_features: int, sizes: Sequence[int], *, has_bias: bool, options: LayerOptions
    ) -> None:
        parallel = options.parallel
        shards = [Shard.of(size, parallel.tp_rank, parallel.tp_size) for size in sizes]
        outputs: dict[Part, Shard] = {None: shards[0]} if len(shards) == 1 else {}
        if len(shards) > 1:
            outputs.update(enumerate(shards))
        super().__init__(outputs, Shard.whole(in_features), has_bias=has_bias, options=options)


class ColumnParallelLinear(MergedColumnParallelLinear):
    """Each rank holds some outputs."""

    def __init__(
        self, in_features: int, out_features: int, *, has_bias: bool, options: LayerOptions
    ) -> None:
        super().__init__(in_features, [out_features], has_bias=has_bias, options=options)


class QKVParallelLinear(Linear):
    """Queries, keys and values of attention, stacked; each rank holds some heads of each.

    The checkpoint's tensors are its parts "q", "k" and "v".

    Attributes:
        num_local_heads, num_local_kv_heads: of this rank.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        has_bias: bool,
        options: LayerOptions,
    ) -> None:
        rank, size = options.parallel.tp_rank, options.parallel.tp_size
        q = Shard.of(num_heads * head_dim, rank, size)
        # With more ranks than KV heads, neighbours hold the same one: the one their queries share.
        num_shards = min(num_kv_heads, size)
        kv = Shard.of(num_kv_heads * head_dim, rank * num_shards // size, num_shards)
        outputs: dict[Part, Shard] = {"q": q, "k": kv, "v": kv}
        super().__init__(outputs, Shard.whole(hidden_size), has_bias=has_bias, options=options)
        self.num_local_heads = num_heads // size
        self.num_local_kv_heads = num_local_kv_heads(num_kv_heads, size)


class RowParallelLinear(Linear):
    """Each rank holds some inputs, those that a ColumnParallelLinear before it gave out.

    The ranks' products are added up. So that the bias counts once, rank 0 alone has it.
    """

    def __init__(
        self, in_features: int, out_features: int, *, has_bias: bool, options: LayerOptions
    ) -> None:
        parallel = options.parallel
        inputs = Shard.of(in_features, parallel.tp_rank, parallel.tp_size)
        outputs: dict[Part, Shard] = {None: Shard.whole(out_features)}
        has_bias = has_bias and parallel.tp_rank == 0
        super().__init__(outputs, inputs, has_bias=has_bias, options=options)
        self._tp = None if options.norms_reduce else parallel.tp

    def forward(self, x: Tensor) -> Tensor:
        """X [num_tokens, in_features of this rank] -> [num_tokens, out_features].

        The same on every rank, or with options.norms_reduce the rank's part of that.
        """
        part = self.kernel(x)
        return part if self._tp is None else self._tp.all_reduce(part)


def num_local_kv_heads(num_kv_heads: int, tp_size: int) -> int:
    """KV heads of a rank: its share, or one that it holds like others where there are too few."""
    return max(1, num_kv_heads // tp_size)
