"""What ranks hold: together the checkpoint, each its share, and no rank what it does not need."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from models.families import FAMILIES, PARALLEL_SIZES, twin_of
from models.run_model import CPU, attention_spec, fill
from torch import Tensor

from chitu_like.attention.ref import RefBackend
from chitu_like.checkpoint.dummy import load_dummy_weights
from chitu_like.cluster.placement import Placement
from chitu_like.core.model_spec import ModelSpec
from chitu_like.distributed.parallel_context import ParallelContext
from chitu_like.models.base import Model
from chitu_like.models.build import build_model
from chitu_like.models.weight_map import IGNORED
from chitu_like.quantization.base import Unquantized

LAYOUTS = ((1, (4,)), (2, (4,)), (4, (4,)), (1, (1, 2, 1)), (2, (3, 1)))


class KeepWeights(Unquantized):
    """Weights stay where they were loaded, to be looked at."""

    def process_after_load(self, layer):  # type: ignore[no-untyped-def]
        return None


def places(tp_size: int, partition: tuple[int, ...]) -> Iterator[ParallelContext]:
    placement = Placement.uniform(num_instances=1, tp_size=tp_size, layer_partition=partition)
    for rank in range(placement.num_ranks):
        seat = placement.seat(rank)
        yield ParallelContext.detached(
            placement.instances[0], pp_rank=seat.pp_rank, tp_rank=seat.tp_rank
        )


def model_at(parallel: ParallelContext, spec: ModelSpec) -> Model:
    backend = RefBackend(attention_spec(spec, 4, torch.float32, tp_size=parallel.tp_size))
    model = build_model(
        spec, backend, torch.float32, CPU, parallel=parallel, quant_method=KeepWeights()
    )
    for parameter in model.parameters():
        for _, put in parameter.layouts[None].copies:  # all but the padding
            parameter.data[put] = torch.nan
    return model


def put_back(model: Model, whole: dict[str, Tensor]) -> None:
    """Write what a rank holds over the tensors of the whole, by the names of the checkpoint."""
    weight_map, parameters = model.weight_map(), dict(model.named_parameters())
    for target in weight_map.expected:
        parameter, name = parameters[target.parameter], weight_map.source_name(target)
        layout = parameter.layouts[target.part]
        into = whole.setdefault(name, torch.full(layout.source_shape, torch.nan))
        for take, put in layout.copies:
            held = parameter.data[put]
            there = into[take]
            assert (there.isnan() | (there == held)).all(), f"ranks differ in {name}"
            into[take] = held


@pytest.mark.parametrize(("tp_size", "partition"), LAYOUTS)
@pytest.mark.parametrize("name", FAMILIES)
def test_ranks_together_hold_the_checkpoint(name: str, tp_size: int, partition) -> None:
    spec, _, weights = twin_of(name, **PARALLEL_SIZES)
    whole: dict[str, Tensor] = {}
    for parallel in places(tp_size, partition):
        model = model_at(parallel, spec)
        fill(model, weights)
        put_back(model, whole)
    tied = {"lm_head.weight"} if spec.tie_word_embeddings else set()
    assert whole.keys() == weights.keys() - tied
    assert all(torch.equal(whole[name], weights[name]) for name in whole)


@pytest.mark.parametrize("name", ["llama-biases", "qwen3-tied-yarn", "opt-post-norm-projected"])
def test_dummy_weights_are_the_same_model_in_every_layout(name: str) -> None:
    spec = twin_of(name, **PARALLEL_SIZES)[0]
    found = []
    for tp_size, partition in LAYOUTS:
        whole: dict[str, Tensor] = {}
        for parallel in places(tp_size, partition):
            model = model_at(parallel, spec)
            load_dummy_weights(model, seed=3)
            put_back(model, whole)
        found.append(whole)
    for whole in found[1:]:
        assert whole.keys() == found[0].keys()
        assert all(torch.equal(whole[name], found[0][name]) for name in whole)


def test_padding_is_zero_and_rows_are_only_real_ones() -> None:
    spec = twin_of("llama", **PARALLEL_SIZES)[0]  # 203 tokens: three ranks hold 51, one 50
    weights = twin_of("llama", **PARALLEL_SIZES)[2]
    *_, last = places(4, (4,))
    model = model_at(last, spec)
    fill(model, weights)
    for parameter in (model.embed_tokens.weight, model.lm_head.weight):
        assert parameter.shape == (51, spec.hidden_size)
        assert parameter[:50].isfinite().all()
        assert not parameter[50].any()


def test_a_stage_holds_its_layers_and_a_tied_head_its_embedding() -> None:
    spec = twin_of("llama-tied", **PARALLEL_SIZES)[0]
    first, inner, last = (
        {name.partition(".")[0] for name, _ in model_at(parallel, spec).named_parameters()}
        for parallel in places(1, (1, 2, 1))
    )
    assert (first, inner) == ({"embed_tokens", "layers"}, {"layers"})
    assert last == {"embed_tokens", "layers", "norm"}
    *_, last_place = places(1, (1, 2, 1))
    assert list(model_at(last_place, spec).layers) == ["3"]


def test_only_the_first_rank_of_a_group_has_a_row_parallel_bias() -> None:
    spec = twin_of("llama-biases", **PARALLEL_SIZES)[0]
    for parallel in places(2, (4,)):
        names = {name for name, _ in model_at(parallel, spec).named_parameters()}
        for bias in ("layers.0.self_attn.o_proj.bias", "layers.3.mlp.down_proj.bias"):
            assert (bias in names) == (parallel.tp_rank == 0)


@pytest.mark.parametrize("name", ["llama", "llama-tied", "opt"])
def test_tensors_of_other_ranks_are_known_and_those_of_none_are_not(name: str) -> None:
    spec, _, weights = twin_of(name, **PARALLEL_SIZES)
    for parallel in places(2, (3, 1)):
        weight_map = model_at(parallel, spec).weight_map()
        resolved = {source: weight_map.resolve(source) for source in weights}
        assert None not in resolved.values()
        taken = {target for target in resolved.values() if target is not IGNORED}
        assert taken == weight_map.expected
        for unknown in ("model.layers.4.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.scale"):
            assert weight_map.resolve(unknown) is None
