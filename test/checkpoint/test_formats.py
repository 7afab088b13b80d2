"""Checkpoints of every family, as transformers writes them and in every older format."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint.meta_files import write_meta
from models.families import hf_logits, twin_of
from models.run_model import PagedModel, attention_spec
from torch import Tensor
from transformers import PreTrainedModel

from chitu_like.attention.base import attention_backends
from chitu_like.checkpoint import loader
from chitu_like.checkpoint.dummy import load_dummy_weights
from chitu_like.checkpoint.loader import load_weights
from chitu_like.checkpoint.reader import open_checkpoint
from chitu_like.core.errors import CheckpointError
from chitu_like.core.model_spec import ModelSpec
from chitu_like.models.base import Model
from chitu_like.models.build import build_model
from chitu_like.models.weight_map import IGNORED

FAMILIES = ["llama", "llama-tied", "llama-biases", "qwen2", "qwen3", "glm4", "opt", "opt-bare"]
TOKENS = list(range(3, 23))


def save_single(model: PreTrainedModel, folder: Path) -> None:
    model.save_pretrained(folder)


def save_sharded(model: PreTrainedModel, folder: Path) -> None:
    model.save_pretrained(folder, max_shard_size="60KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2


def save_without_index(model: PreTrainedModel, folder: Path) -> None:
    save_sharded(model, folder)
    (folder / "model.safetensors.index.json").unlink()


def save_bin(model: PreTrainedModel, folder: Path) -> None:
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


def save_sharded_bin(model: PreTrainedModel, folder: Path) -> None:
    model.config.save_pretrained(folder)
    weights, weight_map = list(model.state_dict().items()), {}
    for number in range(3):
        part = dict(weights[number::3])
        torch.save(part, folder / f"pytorch_model-{number}.bin")
        weight_map |= dict.fromkeys(part, f"pytorch_model-{number}.bin")
    index = json.dumps({"weight_map": weight_map})
    (folder / "pytorch_model.bin.index.json").write_text(index)


def save_headless(model: PreTrainedModel, folder: Path) -> None:
    """As saved from the model without its head: names lack their prefix, the head is tied."""
    model.base_model.save_pretrained(folder)


def architecture_of(model: PreTrainedModel, folder: Path) -> None:
    """Write what from_config models do not know of themselves."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "architectures": [type(model).__name__]}))


FORMATS = [save_single, save_sharded, save_without_index, save_bin, save_sharded_bin]


def logits_of(folder: Path, tokens: list[int]) -> Tensor:
    with open_checkpoint(folder) as reader:
        weights = {name: lazy[()] for name, lazy in reader}
    return PagedModel(ModelSpec.from_folder(folder), weights).step([(0, tokens)])[0]


def empty_model(spec: ModelSpec, dtype: torch.dtype = torch.float32) -> Model:
    backend = attention_backends.get("ref")(attention_spec(spec, 4, dtype))
    return build_model(spec, backend, dtype, torch.device("cpu"))


@pytest.fixture
def _weights_stay_plain(monkeypatch) -> None:
    """Keep the parameters as they were loaded, for comparing."""
    monkeypatch.setattr(loader, "finish_loading", lambda _: 0.0)


def expected_parameters(spec: ModelSpec, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    model = empty_model(spec)
    weight_map, parameters = model.weight_map(), dict(model.named_parameters())
    for name, tensor in weights.items():
        target = weight_map.resolve(name)
        if target is not IGNORED:
            parameters[target.parameter].load(name, tensor, target.part)
    return parameters


@pytest.mark.usefixtures("_weights_stay_plain")
@pytest.mark.parametrize("save", FORMATS)
@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_bit_for_bit_those_saved(
    tmp_path: Path, family: str, save: Callable[[PreTrainedModel, Path], None]
) -> None:
    _, twin, weights = twin_of(family)
    save(twin, tmp_path)
    architecture_of(twin, tmp_path)
    model = empty_model(ModelSpec.from_folder(tmp_path))
    for parameter in model.parameters():
        parameter.fill_(torch.nan)
    with open_checkpoint(tmp_path) as reader:
        load_weights(model, reader, progress=False)
    for name, expected in expected_parameters(ModelSpec.from_folder(tmp_path), weights).items():
        assert torch.equal(dict(model.named_parameters())[name], expected), name


@pytest.mark.usefixtures("_weights_stay_plain")
@pytest.mark.parametrize("family", ["llama-tied", "opt"])
def test_a_tied_model_saved_without_its_head_loads(tmp_path: Path, family: str) -> None:
    _, twin, weights = twin_of(family)
    save_headless(twin, tmp_path)
    architecture_of(twin, tmp_path)
    spec = ModelSpec.from_folder(tmp_path)
    model = empty_model(spec)
    with open_checkpoint(tmp_path) as reader:
        load_weights(model, reader, progress=False)
    for name, expected in expected_parameters(spec, weights).items():
        assert torch.equal(dict(model.named_parameters())[name], expected), name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_gives_the_logits_of_transformers(tmp_path: Path, family: str) -> None:
    _, twin, _ = twin_of(family)
    save_sharded(twin, tmp_path)
    architecture_of(twin, tmp_path)
    found = logits_of(tmp_path, TOKENS)
    torch.testing.assert_close(found, hf_logits(twin, TOKENS), atol=1e-4, rtol=1e-4)


def test_weights_of_another_depth_are_refused(tmp_path: Path) -> None:
    _, twin, _ = twin_of("llama")
    save_single(twin, tmp_path)
    architecture_of(twin, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    model = empty_model(ModelSpec.from_folder(tmp_path))
    with (
        open_checkpoint(tmp_path) as reader,
        pytest.raises(CheckpointError, match=r"9 left over \(model.layers.2.input_layernorm"),
    ):
        load_weights(model, reader, progress=False)


@pytest.mark.parametrize("num_ranks", [1, 2, 6])
def test_metas_own_files_give_the_logits_of_transformers(tmp_path: Path, num_ranks: int) -> None:
    spec, twin, weights = twin_of("llama-head_dim-of-hidden")
    twin.config.save_pretrained(tmp_path)
    architecture_of(twin, tmp_path)
    params = {
        "dim": spec.hidden_size,
        "n_heads": spec.num_heads,
        "n_kv_heads": spec.num_kv_heads,
        "n_layers": spec.num_layers,
    }
    write_meta(tmp_path / "original", weights, params, num_ranks)
    found = logits_of(tmp_path, TOKENS)
    torch.testing.assert_close(found, hf_logits(twin, TOKENS), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dummy_weights_give_finite_logits_through_32_layers(
    family: str, dtype: torch.dtype
) -> None:
    spec, _, weights = twin_of(family)
    paged = PagedModel(spec, weights, dtype=dtype)
    deep = dataclasses.replace(spec, num_layers=32, layer_windows=(None,) * 32)
    paged.model = build_model(deep, paged.backend, dtype, torch.device("cpu"))
    paged.caches = dict.fromkeys(range(32), paged.caches[0])  # each layer writes before it reads
    load_dummy_weights(paged.model, seed=0)
    logits = paged.step([(0, TOKENS)])[0].float()
    assert logits.isfinite().all()
    assert 0.1 < logits.std() < 10
