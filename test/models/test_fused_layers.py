"""A model takes its fused layers where a table says that they pay, and computes the same with them."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from layers.test_fused_decode import TILE, reference_kernel
from models.families import twin_of
from models.run_model import PagedModel, attention_spec
from tolerance import assert_logits_close
from torch import Tensor

from chitu_like.attention.ref import RefBackend
from chitu_like.core.model_spec import ModelSpec
from chitu_like.layers.fused_decode import Attend, FusedDecode, FusedLayer
from chitu_like.models.build import build_model
from chitu_like.models.decoder import DecoderModel
from chitu_like.ops.linear_fused import Operand
from chitu_like.ops.linear_table import LinearTable, TableRow
from chitu_like.ops.linear_tiles import BUCKETS, MAX_TOKENS


def table_of(spec: ModelSpec) -> LinearTable:
    """Every product of a layer is faster fused, for every bucket."""
    backend = RefBackend(attention_spec(spec, 4, torch.float32))
    model = build_model(spec, backend, torch.float32, torch.device("meta"))
    assert isinstance(model, DecoderModel)
    parts = next(iter(model.layers.values())).parts()
    return LinearTable(
        TableRow(
            work=work,
            out_features=linear.weight.shape[0],
            in_features=linear.weight.shape[1],
            dtype="float32",
            num_tokens=bucket,
            tile=TILE,
            tile_us=1.0,
            other_us=2.0,
        )
        for work, linear, _ in parts.products
        for bucket in BUCKETS
    )


@pytest.mark.parametrize("name", ["llama-biases", "qwen3", "glm"])
def test_fused_layers_compute_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, _, weights = twin_of(name)
    plain = PagedModel(spec, weights)
    build = partial(FusedDecode.build, table=table_of(spec), make_kernel=reference_kernel)
    monkeypatch.setattr(FusedDecode, "build", build)
    fused = PagedModel(spec, weights)

    num_taken = 0
    run = FusedLayer.__call__

    def count(layer: FusedLayer, x: Operand, residual: Tensor, attend: Attend) -> Operand:
        nonlocal num_taken
        num_taken += 1
        return run(layer, x, residual, attend)

    monkeypatch.setattr(FusedLayer, "__call__", count)
    tokens = list(range(3, 3 + MAX_TOKENS + 1 + 5 + 1))
    many, few, one = tokens[: MAX_TOKENS + 1], tokens[-6:-1], tokens[-1:]
    for part, expected_taken in ((many, 0), (few, spec.num_layers), (one, 2 * spec.num_layers)):
        assert_logits_close(fused.step([(0, part)])[0], plain.step([(0, part)])[0])
        assert num_taken == expected_taken


def test_a_layer_with_norms_behind_its_halves_is_not_fused() -> None:
    spec, _, weights = twin_of("glm4")
    model = PagedModel(spec, weights).model
    assert isinstance(model, DecoderModel)
    assert all(layer.parts() is None for layer in model.layers.values())
