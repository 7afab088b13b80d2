"""A fused layer computes what the ordinary one does, and is there only where it pays and may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from tolerance import assert_op_close
from torch import Tensor

from chitu_like.distributed.collectives import DetachedGroup
from chitu_like.distributed.parallel_context import ParallelContext
from chitu_like.layers.fused_decode import FusedDecode, LayerParts, MakeKernel
from chitu_like.layers.linear import (
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)
from chitu_like.layers.mlp import GatedMLP
from chitu_like.layers.norm import RMSNorm
from chitu_like.layers.options import LayerOptions
from chitu_like.ops.linear import FewTokens
from chitu_like.ops.linear_fused import Operand, fused_linear
from chitu_like.ops.linear_table import LinearTable, TableRow
from chitu_like.ops.linear_tiles import Epilogue, SkinnyTile
from chitu_like.quantization.base import Unquantized

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INNER = 32, 4, 2, 8, 40
NUM_TOKENS = 3
TILE = SkinnyTile(rows=8, columns=16, splits=2, num_warps=1, num_stages=1, uses_dot=False)


class TinyLayer:
    """A decoder layer by hand, around an attention that any function may stand for."""

    def __init__(self, dtype: torch.dtype, device: torch.device, *, has_bias: bool) -> None:
        self.options = LayerOptions(
            parallel=ParallelContext.single(),
            quant_method=Unquantized(),
            dtype=dtype,
            device=device,
        )
        options = self.options
        self.mlp = GatedMLP(HIDDEN, INNER, "silu", has_bias=has_bias, options=options)
        assert isinstance(self.mlp.gate_up_proj, MergedColumnParallelLinear)
        self.parts = LayerParts(
            input_norm=RMSNorm(HIDDEN, 1e-5, options),
            qkv_proj=QKVParallelLinear(
                HIDDEN, HEADS, KV_HEADS, HEAD_DIM, has_bias=has_bias, options=options
            ),
            o_proj=RowParallelLinear(HEADS * HEAD_DIM, HIDDEN, has_bias=has_bias, options=options),
            post_norm=RMSNorm(HIDDEN, 1e-5, options),
            gate_up_proj=self.mlp.gate_up_proj,
            down_proj=self.mlp.down_proj,
        )
        parts = self.parts
        self.linears = (parts.qkv_proj, parts.o_proj, parts.gate_up_proj, parts.down_proj)
        for module in (*self.linears, parts.input_norm, parts.post_norm):
            for parameter in module.parameters():
                parameter.data = torch.randn_like(parameter.data) / parameter.shape[-1] ** 0.5

    def stream(self, num_tokens: int) -> Tensor:
        options = self.options
        return torch.randn(num_tokens, HIDDEN, dtype=options.dtype, device=options.device)

    def attend(self, qkv: Tensor) -> Tensor:
        """Something of each token's own that keeps the shape of queries."""
        q, k, v = qkv.split([HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM], -1)
        return q.tanh() + torch.cat((k, v), -1)

    def ordinary(self, residual: Tensor) -> Tensor:
        """The stream behind the layer, by the modules."""
        weights = [linear.weight.data for linear in self.linears]
        for linear in self.linears:
            linear.weight.data = linear.weight.data.clone()
            linear.process_after_load()
        parts, stream = self.parts, residual.clone()
        attended = parts.o_proj(self.attend(parts.qkv_proj(parts.input_norm(stream))))
        stream += self.mlp(parts.post_norm(attended, stream))
        for linear, weight in zip(self.linears, weights, strict=True):
            linear.weight.data = weight
        return stream


def reference_kernel(
    weight: Tensor,
    bias: Tensor | None,
    _tile: SkinnyTile,
    *,
    eps: float = 0.0,
    epilogue: Epilogue = Epilogue.NONE,
    norm_weight: Tensor | None = None,
) -> FewTokens:
    def call(x: Operand, residual: Tensor | None) -> Operand:
        return fused_linear(
            x, weight, bias, eps=eps, epilogue=epilogue, residual=residual, norm_weight=norm_weight
        )

    return call


def rows_of(parts: LayerParts, num_tokens: int, gain_us: float) -> list[TableRow]:
    """Measurements of the four products, each with this gain."""
    bucket = 1 << (num_tokens - 1).bit_length()
    return [
        TableRow(
            work=work,
            out_features=linear.weight.shape[0],
            in_features=linear.weight.shape[1],
            dtype=str(linear.weight.dtype).removeprefix("torch."),
            num_tokens=bucket,
            tile=TILE,
            tile_us=10.0,
            other_us=10.0 + gain_us,
        )
        for work, linear, _ in parts.products
    ]


def table_of(parts: LayerParts, num_tokens: int, gain_us: float) -> LinearTable:
    return LinearTable(rows_of(parts, num_tokens, gain_us))


@pytest.fixture
def layer() -> TinyLayer:
    return TinyLayer(torch.float64, torch.device("cpu"), has_bias=False)


def build(
    layer: TinyLayer,
    table: LinearTable,
    activation: str = "silu",
    options: LayerOptions | None = None,
) -> FusedDecode | None:
    return FusedDecode.build(
        [layer.parts],
        activation=activation,
        options=options or layer.options,
        table=table,
        make_kernel=reference_kernel,
    )


class TwoLayers:
    """Two layers, one behind the other: the second one's first norm is begun by the first one.

    Args:
        layers: both.
        num_tokens: of a stream.
        make_kernel: of the fused layers.
        tile: of every product.
    """

    def __init__(
        self,
        layers: Sequence[TinyLayer],
        num_tokens: int,
        make_kernel: MakeKernel,
        tile: SkinnyTile = TILE,
    ) -> None:
        first, second = layers
        rows = rows_of(first.parts, num_tokens, gain_us=1.0)
        fused = FusedDecode.build(
            [first.parts, second.parts],
            activation="silu",
            options=first.options,
            table=LinearTable(replace(row, tile=tile) for row in rows),
            make_kernel=make_kernel,
        )
        assert fused is not None
        fused_layers = fused.layers_for(num_tokens)
        assert fused_layers is not None
        assert len(fused_layers) == 2
        self._layers, self._fused_layers = layers, fused_layers

    def run(self, residual: Tensor) -> None:
        """Take the stream through both, fused."""
        x = Operand(self._layers[0].parts.input_norm(residual))
        for fused_layer, layer in zip(self._fused_layers, self._layers, strict=True):
            x = fused_layer(x, residual, layer.attend)
        assert x.values is residual
        assert x.squares is None

    def ordinary(self, residual: Tensor) -> Tensor:
        """The stream behind both, by the modules."""
        first, second = self._layers
        return second.ordinary(first.ordinary(residual))

    def check(self, residual: Tensor) -> None:
        expected = self.ordinary(residual)
        self.run(residual)
        assert_op_close(residual, expected)


@pytest.mark.parametrize("has_bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("num_tokens", [1, 3, 16, 40])
def test_fused_layers_compute_what_the_ordinary_ones_do(num_tokens: int, has_bias: bool) -> None:
    cpu = torch.device("cpu")
    layers = [TinyLayer(torch.float32, cpu, has_bias=has_bias) for _ in range(2)]
    TwoLayers(layers, num_tokens, reference_kernel).check(layers[0].stream(num_tokens))


def test_it_is_taken_for_the_tokens_that_were_measured(layer: TinyLayer) -> None:
    fused = build(layer, table_of(layer.parts, 4, gain_us=1.0))
    assert fused is not None
    assert fused.layers_for(3) is fused.layers_for(4) is not None
    for num_tokens in (0, 1, 2, 5, 16, 17, 64, 65, 400):
        assert fused.layers_for(num_tokens) is None


def test_the_four_products_together_must_be_faster(layer: TinyLayer) -> None:
    assert build(layer, table_of(layer.parts, 4, gain_us=0.0)) is None
    qkv, *others = rows_of(layer.parts, 4, gain_us=-1.0)
    assert build(layer, LinearTable([qkv, *others])) is None
    assert build(layer, LinearTable([replace(qkv, other_us=12.0), *others])) is None
    assert build(layer, LinearTable([replace(qkv, other_us=13.1), *others])) is not None


def test_without_a_measurement_of_each_there_is_nothing_to_take(layer: TinyLayer) -> None:
    rows = rows_of(layer.parts, 4, gain_us=1.0)
    assert build(layer, LinearTable(rows[:-1])) is None
    assert build(layer, LinearTable()) is None


def test_one_layer_that_does_not_pay_leaves_all_as_they_are(layer: TinyLayer) -> None:
    layers = [layer.parts, TinyLayer(torch.float64, torch.device("cpu"), has_bias=False).parts]
    table = table_of(layer.parts, 4, gain_us=1.0)
    wider = layers[1].down_proj
    wider.weight.data = torch.randn(HIDDEN, 2 * INNER, dtype=torch.float64)
    assert (
        FusedDecode.build(
            layers,
            activation="silu",
            options=layer.options,
            table=table,
            make_kernel=reference_kernel,
        )
        is None
    )


@pytest.mark.parametrize("activation", ["gelu", "gelu_pytorch_tanh", "relu"])
def test_other_activations_stay_on_the_ordinary_path(layer: TinyLayer, activation: str) -> None:
    assert build(layer, table_of(layer.parts, 4, gain_us=1.0), activation=activation) is None


def test_several_ranks_stay_on_the_ordinary_path(layer: TinyLayer) -> None:
    parallel = ParallelContext(pp_rank=0, pp_size=1, tp=DetachedGroup(0, 2))
    options = replace(layer.options, parallel=parallel)
    assert build(layer, table_of(layer.parts, 4, gain_us=1.0), options=options) is None


def test_quantised_layers_stay_on_the_ordinary_path(layer: TinyLayer) -> None:
    class Scheme:
        create_weights = Unquantized.create_weights
        process_after_load = Unquantized.process_after_load

    options = replace(layer.options, quant_method=Scheme())  # type: ignore[arg-type]
    assert build(layer, table_of(layer.parts, 4, gain_us=1.0), options=options) is None


def test_layers_whose_bits_must_not_depend_on_the_batch_stay_on_the_ordinary_path(
    layer: TinyLayer,
) -> None:
    options = replace(layer.options, quant_method=Unquantized(is_invariant=True))
    assert build(layer, table_of(layer.parts, 4, gain_us=1.0), options=options) is None


def test_plain_torch_is_taken_at_its_word(layer: TinyLayer) -> None:
    options = replace(layer.options, op_impl="torch")
    assert build(layer, table_of(layer.parts, 4, gain_us=1.0), options=options) is None
