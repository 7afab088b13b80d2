from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from chitu_like.checkpoint import rank_file
from chitu_like.checkpoint.rank_file import (
    digest_of,
    open_rank_file,
    read_rank_file,
    write_rank_file,
)
from chitu_like.core.errors import CheckpointError

DTYPES = (torch.uint8, torch.bfloat16, torch.float32, torch.float8_e4m3fn, torch.int32, torch.int8)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a tensor is several chunks, and the threads have something to mix up."""
    monkeypatch.setattr(rank_file, "CHUNK_BYTES", 64)


def some_tensors() -> dict[str, Tensor]:
    tensors = {
        f"layers.{i}.{str(dtype)[6:]}": torch.randint(0, 99, (7, 5 + i)).to(dtype)
        for i in range(12)
        for dtype in DTYPES
    }
    return {"nothing": torch.empty(0, 4), "scale": torch.tensor(3.5), **tensors}


def bits(tensor: Tensor) -> list[int]:
    return tensor.reshape(-1).view(torch.uint8).tolist()


def test_tensors_of_every_dtype_come_back_bit_by_bit(tmp_path):
    tensors, path, steps = some_tensors(), tmp_path / "r.safetensors", []
    num_bytes = write_rank_file(path, tensors, steps.append)
    assert path.stat().st_size == num_bytes
    assert sum(steps) == sum(tensor.nbytes for tensor in tensors.values())
    stored = open_rank_file(path)
    assert digest_of(stored) == digest_of(tensors)
    found = {name: torch.empty(t.shape, dtype=t.dtype) for name, t in stored.items()}
    steps.clear()
    read_rank_file(path, found, steps.append)
    assert sum(steps) == sum(tensor.nbytes for tensor in tensors.values())
    by_others = load_file(path)
    assert found.keys() == tensors.keys() == by_others.keys()
    for name, tensor in tensors.items():
        assert bits(found[name]) == bits(tensor) == bits(by_others[name]), name


@pytest.mark.gpu
def test_a_device_gets_the_same_bits(tmp_path):
    tensors, path = some_tensors(), tmp_path / "r.safetensors"
    write_rank_file(path, tensors, lambda _: None)
    found = {n: torch.empty_like(tensors[n], device="cuda") for n in open_rank_file(path)}
    read_rank_file(path, found, lambda _: None)
    assert {n: bits(t.cpu()) for n, t in found.items()} == {n: bits(t) for n, t in tensors.items()}


def test_a_digest_is_of_names_shapes_and_dtypes():
    tensors = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}
    digest = digest_of(tensors)
    assert digest_of({"b": torch.ones(4), "a": torch.ones(2, 3)}) == digest
    for change in ({"a": torch.zeros(3, 2)}, {"b": torch.zeros(4).half()}, {"c": torch.zeros(1)}):
        assert digest_of(tensors | change) != digest


@pytest.mark.parametrize("cut", [1, 100])
def test_a_file_that_shrinks_while_it_is_read_is_damaged(tmp_path, cut):
    tensors, path = some_tensors(), tmp_path / "r.safetensors"
    num_bytes = write_rank_file(path, tensors, lambda _: None)
    found = {name: torch.empty(t.shape, dtype=t.dtype) for name, t in open_rank_file(path).items()}
    with path.open("r+b") as file:
        file.truncate(num_bytes - cut)
    with pytest.raises(CheckpointError, match=r"r\.safetensors is truncated or damaged"):
        read_rank_file(path, found, lambda _: None)


def test_a_write_that_fails_leaves_nothing(tmp_path):
    def fail(_: int) -> None:
        raise KeyboardInterrupt

    (tmp_path / "r.safetensors").write_text("before")
    with pytest.raises(KeyboardInterrupt):
        write_rank_file(tmp_path / "r.safetensors", some_tensors(), fail)
    assert [path.name for path in tmp_path.iterdir()] == ["r.safetensors"]
    assert (tmp_path / "r.safetensors").read_text() == "before"
