import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from chitu_like.checkpoint import shards
from chitu_like.checkpoint.reader import open_checkpoint
from chitu_like.core.errors import CheckpointError

Tensors = dict[str, Tensor]


@pytest.fixture
def tensors() -> Tensors:
    return {
        "b.weight": torch.randn(6, 4),
        "a.weight": torch.randn(5, 3).bfloat16(),
        "a.bias": torch.randn(7).half(),
    }


def parts_of(tensors: Tensors) -> list[Tensors]:
    names = list(tensors)
    return [{names[0]: tensors[names[0]]}, {name: tensors[name] for name in names[1:]}]


def write_index(path: Path, weight_map: dict[str, str]) -> None:
    path.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def write_safetensors_shards(folder: Path, tensors: Tensors, *, index: bool) -> None:
    weight_map = {}
    for i, part in enumerate(parts_of(tensors)):
        save_file(part, folder / f"model-{i}.safetensors")
        weight_map |= dict.fromkeys(part, f"model-{i}.safetensors")
    if index:
        write_index(folder / "model.safetensors.index.json", weight_map)


def write_pickle_shards(folder: Path, tensors: Tensors, *, index: bool) -> None:
    weight_map = {}
    for i, part in enumerate(parts_of(tensors)):
        torch.save(part, folder / f"pytorch_model-{i}.bin")
        weight_map |= dict.fromkeys(part, f"pytorch_model-{i}.bin")
    if index:
        write_index(folder / "pytorch_model.bin.index.json", weight_map)


def save_legacy(tensors: Tensors, path: Path) -> None:
    torch.save(tensors, path, _use_new_zipfile_serialization=False)


LAYOUTS = {
    "single safetensors": lambda d, t: save_file(t, d / "model.safetensors"),
    "safetensors of another name": lambda d, t: save_file(t, d / "weights.safetensors"),
    "indexed safetensors": lambda d, t: write_safetensors_shards(d, t, index=True),
    "safetensors without index": lambda d, t: write_safetensors_shards(d, t, index=False),
    "single bin": lambda d, t: torch.save(t, d / "pytorch_model.bin"),
    "legacy bin": lambda d, t: save_legacy(t, d / "pytorch_model.bin"),
    "indexed bin": lambda d, t: write_pickle_shards(d, t, index=True),
    "bin without index": lambda d, t: write_pickle_shards(d, t, index=False),
    "pth": lambda d, t: torch.save(t, d / "model.pth"),
    "wrapped pth": lambda d, t: torch.save({"model": t, "step": 3}, d / "model.pth"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_yields_every_tensor_once(tmp_path, tensors, layout):
    LAYOUTS[layout](tmp_path, tensors)
    with open_checkpoint(tmp_path) as reader:
        found = list(reader)
    assert sorted(name for name, _ in found) == sorted(tensors)
    for name, lazy in found:
        assert (lazy.shape, lazy.dtype) == (tensors[name].shape, tensors[name].dtype)
        assert torch.equal(lazy[()], tensors[name])
        assert torch.equal(lazy[(slice(1, 3),)], tensors[name][1:3])
    matrix = dict(found)["b.weight"]
    assert torch.equal(matrix[(slice(None), slice(1, 2))], tensors["b.weight"][:, 1:2])


def test_iterating_twice_reads_the_same(tmp_path, tensors):
    write_safetensors_shards(tmp_path, tensors, index=True)
    with open_checkpoint(tmp_path) as reader:
        assert [name for name, _ in reader] == [name for name, _ in reader]


def test_tensors_outlive_the_mapping_they_came_from(tmp_path, tensors, monkeypatch):
    monkeypatch.setattr(shards, "BYTES_PER_MAPPING", 0)  # a new one for each tensor
    save_file(tensors, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as reader:
        found = list(reader)
    assert all(torch.equal(lazy[()], tensors[name]) for name, lazy in found)


def test_num_bytes_counts_the_weight_files_alone(tmp_path, tensors):
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "README.md").write_text("x" * 1000)
    expected = (tmp_path / "model.safetensors").stat().st_size
    assert open_checkpoint(tmp_path).num_bytes == expected


def test_safetensors_win_over_pickles_and_over_mistrals_second_copy(tmp_path, tensors):
    save_file({"right": torch.ones(1)}, tmp_path / "model-1.safetensors")
    save_file(tensors, tmp_path / "consolidated.safetensors")
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    with open_checkpoint(tmp_path) as reader:
        assert [name for name, _ in reader] == ["right"]


def test_index_decides_between_two_copies(tmp_path):
    save_file({"x": torch.zeros(2)}, tmp_path / "model-0.safetensors")
    save_file({"x": torch.ones(2), "y": torch.ones(2)}, tmp_path / "model-1.safetensors")
    weight_map = {"x": "model-0.safetensors", "y": "model-1.safetensors"}
    write_index(tmp_path / "model.safetensors.index.json", weight_map)
    with open_checkpoint(tmp_path) as reader:
        read = {name: lazy[()] for name, lazy in reader}
    assert torch.equal(read["x"], torch.zeros(2))
    assert sorted(read) == ["x", "y"]


def test_two_copies_without_index_are_refused(tmp_path):
    save_file({"x": torch.zeros(2)}, tmp_path / "model-0.safetensors")
    save_file({"x": torch.ones(2)}, tmp_path / "model-1.safetensors")
    with open_checkpoint(tmp_path) as reader, pytest.raises(CheckpointError) as caught:
        list(reader)
    assert "x is in model-0.safetensors and in model-1.safetensors" in str(caught.value)


def test_empty_folder_says_what_was_looked_for(tmp_path):
    with pytest.raises(CheckpointError, match=r"no weights: looked for \*.safetensors"):
        open_checkpoint(tmp_path)


def test_absent_folder_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere is not a folder.*models.ckpt_dir"):
        open_checkpoint(tmp_path / "nowhere")


def test_index_naming_an_absent_file_is_refused(tmp_path, tensors):
    write_safetensors_shards(tmp_path, tensors, index=True)
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks, model-1.safetensors among them"):
        open_checkpoint(tmp_path)


def test_tensor_absent_from_its_shard_is_named(tmp_path, tensors):
    write_safetensors_shards(tmp_path, tensors, index=True)
    save_file({"a.bias": tensors["a.bias"]}, tmp_path / "model-1.safetensors")
    with (
        open_checkpoint(tmp_path) as reader,
        pytest.raises(CheckpointError, match=r"model-1.safetensors lacks 1 tensor.*a.weight"),
    ):
        list(reader)


@pytest.mark.parametrize("content", ["not json", "[]", '{"weight_map": 3}', "{}"])
def test_damaged_index_is_named(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"index.json is not an index"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("file", ["../outside.safetensors", "/etc/passwd"])
def test_index_cannot_leave_the_folder(tmp_path, file):
    write_index(tmp_path / "model.safetensors.index.json", {"x": file})
    with pytest.raises(CheckpointError, match="outside the checkpoint"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("layout", ["single safetensors", "single bin", "legacy bin", "pth"])
@pytest.mark.parametrize("keep", [0.0, 0.05, 0.5, 0.95])
def test_truncated_file_is_named(tmp_path, tensors, layout, keep):
    LAYOUTS[layout](tmp_path, tensors)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with (
        open_checkpoint(tmp_path) as reader,
        pytest.raises(CheckpointError, match=f"{path.name} is truncated or damaged") as caught,
    ):
        list(reader)
    assert "\n" not in str(caught.value)


class RunsCode:
    def __reduce__(self):
        return (exec, ("raise SystemExit('pickled code ran')",))


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_refused_and_safetensors_named(tmp_path, zipped):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"x": RunsCode()}, path, _use_new_zipfile_serialization=zipped)
    with (
        open_checkpoint(tmp_path) as reader,
        pytest.raises(CheckpointError, match=r"pytorch_model.bin holds pickled.*safetensors"),
    ):
        list(reader)


def test_pickle_of_something_else_is_refused(tmp_path):
    torch.save([1, 2, 3], tmp_path / "pytorch_model.bin")
    with (
        open_checkpoint(tmp_path) as reader,
        pytest.raises(CheckpointError, match="holds a list where named tensors were expected"),
    ):
        list(reader)
