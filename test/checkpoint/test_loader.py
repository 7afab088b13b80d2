from __future__ import annotations

import logging
import re

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor, nn

from chitu_like.checkpoint import progress as progress_module
from chitu_like.checkpoint.dummy import load_dummy_weights
from chitu_like.checkpoint.loader import LoadReport, load_weights
from chitu_like.checkpoint.progress import BarProgress, LogProgress
from chitu_like.checkpoint.reader import open_checkpoint
from chitu_like.core.errors import CheckpointError, UnsupportedError
from chitu_like.models.weight_map import NameTable, WeightMap
from chitu_like.quantization.parameter import Shard, WeightParameter, stacked_layouts

HIDDEN, HEADS = 8, (6, 2, 2)


class Linear(nn.Module):
    """A merged weight, whole or one of two shards, that records when loading ended."""

    def __init__(self, parts: dict, hidden: int, dtype: torch.dtype) -> None:
        super().__init__()
        shape, layouts = stacked_layouts(parts, (Shard.whole(hidden),))
        self.weight = WeightParameter(torch.empty(shape, dtype=dtype), layouts)
        self.bias = WeightParameter(torch.empty(shape[:1], dtype=dtype), stacked_layouts(parts)[1])
        self.seen_after_load: list[Tensor] = []

    def process_after_load(self) -> None:
        self.seen_after_load.append(self.weight.clone())


class Norm(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        shape, layouts = stacked_layouts({None: Shard.whole(HIDDEN)})
        self.weight = WeightParameter(torch.empty(shape, dtype=dtype), layouts)


class Model(nn.Module):
    def __init__(self, dtype=torch.float32, rank=0, num_ranks=1, depth=1) -> None:
        super().__init__()
        parts = {
            part: Shard.of(size, rank, num_ranks) for part, size in zip("qkv", HEADS, strict=True)
        }
        self.layers = nn.ModuleList(
            nn.ModuleDict({"qkv_proj": Linear(parts, HIDDEN, dtype), "norm": Norm(dtype)})
            for _ in range(depth)
        )

    def weight_map(self) -> WeightMap:
        return WeightMap(NameTable(), (name for name, _ in self.named_parameters()))


def checkpoint_tensors() -> dict[str, Tensor]:
    tensors = {"model.layers.0.norm.weight": torch.randn(HIDDEN)}
    for part, size in zip("qkv", HEADS, strict=True):
        tensors[f"model.layers.0.{part}_proj.weight"] = torch.randn(size, HIDDEN)
        tensors[f"model.layers.0.{part}_proj.bias"] = torch.randn(size)
    return tensors


def load(folder, model, tensors) -> LoadReport:
    save_file(tensors, folder / "model.safetensors")
    with open_checkpoint(folder) as reader:
        return load_weights(model, reader, progress=False)


def test_every_part_is_filled_and_counted(tmp_path):
    model, tensors = Model(), checkpoint_tensors()
    report = load(tmp_path, model, tensors)
    expected = torch.cat([tensors[f"model.layers.0.{part}_proj.weight"] for part in "qkv"])
    assert torch.equal(model.layers[0]["qkv_proj"].weight, expected)
    assert torch.equal(model.layers[0]["norm"].weight, tensors["model.layers.0.norm.weight"])
    assert report.num_tensors == len(tensors)
    assert report.num_bytes == sum(t.numel() * 4 for t in tensors.values())
    assert report.bytes_per_s > 0


def test_a_rank_takes_and_counts_its_share(tmp_path):
    tensors = checkpoint_tensors()
    reports = [load(tmp_path, Model(rank=rank, num_ranks=2), tensors) for rank in range(2)]
    whole, norm = sum(t.nbytes for t in tensors.values()), HIDDEN * 4
    assert [report.num_bytes for report in reports] == [(whole - norm) // 2 + norm] * 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_are_converted_to_the_parameters_dtype(tmp_path, dtype):
    model, tensors = Model(dtype), checkpoint_tensors()
    load(tmp_path, model, tensors)
    weight = model.layers[0]["norm"].weight
    assert torch.equal(weight, tensors["model.layers.0.norm.weight"].to(dtype))


def test_process_after_load_runs_once_with_all_weights_there(tmp_path):
    model = Model()
    load(tmp_path, model, checkpoint_tensors())
    layer = model.layers[0]["qkv_proj"]
    assert len(layer.seen_after_load) == 1
    assert torch.equal(layer.seen_after_load[0], layer.weight)


def test_tied_head_and_recomputed_tables_are_skipped(tmp_path):
    tensors = checkpoint_tensors()
    tensors["lm_head.weight"] = torch.randn(3, HIDDEN)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.randn(4)
    assert load(tmp_path, Model(), tensors).num_tensors == len(tensors) - 2


def refused(folder, model, tensors, error=CheckpointError) -> str:
    for parameter in model.parameters():
        parameter.zero_()
    with pytest.raises(error) as caught:
        load(folder, model, tensors)
    assert all(not parameter.any() for parameter in model.parameters()), "weights were read"
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def test_missing_tensors_are_named_and_counted(tmp_path):
    tensors = checkpoint_tensors()
    del tensors["model.layers.0.k_proj.bias"], tensors["model.layers.0.norm.weight"]
    message = refused(tmp_path, Model(), tensors)
    assert "2 missing (model.layers.0.k_proj.bias, model.layers.0.norm.weight)" in message


def test_many_missing_tensors_are_cut_to_a_few(tmp_path):
    message = refused(tmp_path, Model(depth=3), checkpoint_tensors())
    assert "14 missing (model.layers.1.k_proj.bias, " in message
    assert "and 11 more)" in message


def test_left_over_tensors_are_named(tmp_path):
    tensors = checkpoint_tensors() | {"model.layers.7.norm.weight": torch.ones(HIDDEN)}
    assert "1 left over (model.layers.7.norm.weight)" in refused(tmp_path, Model(), tensors)


def test_wrong_shapes_are_named_with_both(tmp_path):
    tensors = checkpoint_tensors() | {"model.layers.0.q_proj.weight": torch.ones(6, 9)}
    message = refused(tmp_path, Model(), tensors)
    assert "1 misshapen (model.layers.0.q_proj.weight is [6, 9], not [6, 8])" in message


def test_a_part_there_twice_is_refused(tmp_path):
    tensors = checkpoint_tensors() | {"layers.0.norm.weight": torch.ones(HIDDEN)}
    message = refused(tmp_path, Model(), tensors)
    assert re.search(r"1 twice \(.*layers.0.norm.weight and .*layers.0.norm.weight\)", message)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.int32])
def test_quantised_weights_are_refused_for_now(tmp_path, dtype):
    tensors = checkpoint_tensors()
    name = "model.layers.0.q_proj.weight"
    tensors[name] = tensors[name].to(dtype)
    message = refused(tmp_path, Model(), tensors, UnsupportedError)
    assert f"tensor {name} is quantised ({dtype})" in message


def filled(seed=0, **options) -> Model:
    model = Model(**options)
    for parameter in model.parameters():
        parameter.fill_(torch.nan)
    load_dummy_weights(model, seed)
    return model


def test_dummy_weights_depend_on_seed_and_name_alone():
    first, again, other = filled(3), filled(3), filled(4)
    for name, weight in first.named_parameters():
        assert torch.equal(weight, dict(again.named_parameters())[name])
        assert not torch.equal(weight, dict(other.named_parameters())[name])
    deep = filled(3, depth=2).layers
    assert torch.equal(deep[0]["qkv_proj"].weight, first.layers[0]["qkv_proj"].weight)
    assert not torch.equal(deep[0]["qkv_proj"].weight, deep[1]["qkv_proj"].weight)


def test_shards_of_dummy_weights_are_shards_of_the_whole():
    whole = filled().layers[0]["qkv_proj"].weight.split(HEADS)
    shards = [
        filled(rank=rank, num_ranks=2).layers[0]["qkv_proj"].weight.split([s // 2 for s in HEADS])
        for rank in range(2)
    ]
    for part, left, right in zip(whole, *shards, strict=True):
        assert torch.equal(part, torch.cat([left, right]))


def test_dummy_weights_have_the_size_they_should():
    model = filled(dtype=torch.bfloat16)
    norm, linear = model.layers[0]["norm"], model.layers[0]["qkv_proj"]
    assert 0.5 < norm.weight.min() <= norm.weight.max() < 1.5
    assert linear.bias.abs().max() < 0.1
    assert 0.5 < linear.weight.float().std() * HIDDEN**0.5 < 1.5


def test_dummy_weights_end_with_process_after_load():
    assert len(filled().layers[0]["qkv_proj"].seen_after_load) == 1


def test_log_lines_come_seconds_apart(monkeypatch, caplog):
    clock = iter(range(100))
    monkeypatch.setattr(progress_module.time, "perf_counter", lambda: float(next(clock)))
    with (
        caplog.at_level(logging.INFO, logger=progress_module.__name__),
        LogProgress(total_bytes=12_000_000_000) as progress,
    ):
        for _ in range(12):
            progress.advance(1_000_000_000)
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        "loading weights: 5.0 of 12.0 GB, 1.00 GB/s",
        "loading weights: 10.0 of 12.0 GB, 1.00 GB/s",
    ]


def test_bar_shows_bytes_and_speed():
    console = Console(force_terminal=True, width=120, record=True)
    with BarProgress(2_000_000_000, console) as progress:
        progress.advance(1_000_000_000)
        progress.advance(1_000_000_000)
    assert "2.0/2.0 GB" in console.export_text()
