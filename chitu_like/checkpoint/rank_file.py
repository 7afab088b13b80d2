"""The file of one rank: its parameters as they stand in memory, under their own names.

It is a safetensors file, one parameter behind the other without gaps, so that reading is one run
from its first byte to its last, straight into the parameters.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from chitu_like.checkpoint.atomic_file import atomic_file
from chitu_like.checkpoint.shards import SAFETENSORS_DTYPES, SafetensorsShard, damaged
from chitu_like.quantization.parameter import LazyTensor

CHUNK_BYTES = 16 << 20  # between two steps of the progress bar; reads of it are as fast as can be
_HEADER_LENGTH = struct.Struct("<Q")
_ALIGNMENT = 8  # of the first tensor; the largest element comes first, so all are aligned
_DTYPE_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}

Advance = Callable[[int], None]
"""Told how many bytes more are done."""


def digest_of(tensors: Mapping[str, LazyTensor]) -> str:
    """A digest of names, shapes and dtypes, whatever their order; reads no element."""
    lines = sorted(
        f"{name} {_DTYPE_NAMES[tensor.dtype]} {list(tensor.shape)}"
        for name, tensor in tensors.items()
    )
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()


def write_rank_file(path: Path, tensors: Mapping[str, Tensor], advance: Advance) -> int:
    """Write tensors of a CPU; the file appears when it is whole. Takes no memory beside them.

    Returns: the size of the file in bytes.
    Raises: OSError, e.g. of a full disk.
    """
    ordered = dict(sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize))
    with atomic_file(path) as file:
        file.write(_header(ordered))
        for tensor in ordered.values():
            for chunk in _bytes_of(tensor).split(CHUNK_BYTES):
                file.write(chunk.numpy().data)
                advance(len(chunk))
        return file.tell()


def open_rank_file(path: Path) -> dict[str, LazyTensor]:
    """Names, shapes and dtypes, in the order of the bytes.

    Raises: CheckpointError if the file is truncated or not safetensors.
    """
    shard = SafetensorsShard(path)  # checks that the tensors fill the file without gaps
    return {name: shard.get(name) for name in shard.names()}


def read_rank_file(path: Path, tensors: Mapping[str, Tensor], advance: Advance) -> None:
    """Overwrite tensors with a file's.

    Args:
        path: checked by `open_rank_file`.
        tensors: those of the file and in its order, of its shapes and dtypes, contiguous; any
            device.
        advance: told of the progress.

    Raises: CheckpointError if the file ends too early.
    """
    try:
        with path.open("rb", buffering=0) as file:
            (header_bytes,) = _HEADER_LENGTH.unpack(file.read(_HEADER_LENGTH.size))
            file.seek(header_bytes, 1)
            staging = _staging_for(tensors)
            for tensor in tensors.values():
                for chunk in _bytes_of(tensor).split(CHUNK_BYTES):
                    target = chunk if staging is None else staging[: len(chunk)]
                    _fill(target.numpy().data, file.readinto)
                    if staging is not None:
                        chunk.copy_(target)
                    advance(len(chunk))
    except OSError as error:
        raise damaged(path, error) from error


def _header(tensors: Mapping[str, Tensor]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        entries[name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return _HEADER_LENGTH.pack(len(text)) + text


def _bytes_of(tensor: Tensor) -> Tensor:
    """The same memory as bytes."""
    assert tensor.is_contiguous(), f"a parameter of shape {list(tensor.shape)} is not contiguous"
    return tensor.detach().view(-1).view(torch.uint8)


def _staging_for(tensors: Mapping[str, Tensor]) -> Tensor | None:
    """Memory to read into on the way to a device; None where tensors can be read into."""
    if all(tensor.device.type == "cpu" for tensor in tensors.values()):
        return None
    return torch.empty(CHUNK_BYTES, dtype=torch.uint8, pin_memory=True)


def _fill(buffer: memoryview, readinto: Callable[[memoryview], int | None]) -> None:
    """Read until `buffer` is full. Raises: OSError where the file ends before."""
    while buffer:
        num_read = readinto(buffer)
        if not num_read:
            raise OSError("it ends too early")
        buffer = buffer[num_read:]
