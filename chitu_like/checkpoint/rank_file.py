"""The file of one rank: its parameters as they stand in memory, under their own names.

It is a safetensors file, one parameter behind the other without gaps, so that reading is one run
from its first byte to its last, straight into the parameters, by a few threads at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from chitu_like.checkpoint.atomic_file import atomic_file
from chitu_like.checkpoint.shards import SAFETENSORS_DTYPES, SafetensorsShard, damaged
from chitu_like.quantization.parameter import LazyTensor

CHUNK_BYTES = 16 << 20  # large enough that a read's own cost is nothing, small enough to be shared
# One thread copies out of the page cache, or zeroes fresh pages, at a few GB/s; a disk wants several
# reads under way as well. More than this would take the cores of the other ranks of a machine.
NUM_READERS = 4
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
        with path.open("rb", buffering=0) as file, ThreadPoolExecutor(NUM_READERS) as readers:
            (header_bytes,) = _HEADER_LENGTH.unpack(file.read(_HEADER_LENGTH.size))
            chunks = _chunks(tensors, start=_HEADER_LENGTH.size + header_bytes)
            for num_bytes in readers.map(lambda chunk: chunk.read(file.fileno()), chunks):
                advance(num_bytes)
    except OSError as error:
        raise damaged(path, error) from error


class _Chunk(NamedTuple):
    """Bytes of a parameter, and where in the file they are."""

    memory: Tensor
    offset: int

    def read(self, descriptor: int) -> int:
        """Fill them; returns how many. Raises: OSError where the file ends before."""
        on_host = self.memory.device.type == "cpu"
        # Pinned memory is kept by torch and given to the next chunk.
        staging = (
            self.memory
            if on_host
            else torch.empty(len(self.memory), dtype=torch.uint8, pin_memory=True)
        )
        buffer, done = staging.numpy().data, 0
        while done < len(buffer):
            num_read = os.preadv(descriptor, [buffer[done:]], self.offset + done)
            if not num_read:
                raise OSError("it ends too early")
            done += num_read
        if not on_host:
            self.memory.copy_(staging)
        return done


def _chunks(tensors: Mapping[str, Tensor], start: int) -> Iterator[_Chunk]:
    """The bytes of all tensors, which lie in the file one behind the other from `start` on."""
    for tensor in tensors.values():
        for memory in _bytes_of(tensor).split(CHUNK_BYTES):
            yield _Chunk(memory, start)
            start += len(memory)


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
