"""One weight file: the names in it and a lazy view of each tensor.

A shard opens its file when first asked and lets go of it in `close`; tensors handed out before stay
valid, because each keeps its own hold on the mapped memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from chitu_like.core.errors import CheckpointError
from chitu_like.quantization.parameter import LazyTensor

# Read of one mapping. Pages of a mapped file count as the process's memory until it is unmapped, and
# the kernel maps whole runs of pages around one that is touched, whosever share they are. Mapped anew
# from time to time, a rank of two peaks at 0.59 of a 443 MB file instead of 1.29 times it, its
# weights included, and loads no slower.
BYTES_PER_MAPPING = 32 << 20

# Dictionaries that training scripts wrap around the weights.
_WRAPPERS = ("state_dict", "model", "module")

SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class Shard(Protocol):
    """One weight file."""

    path: Path

    def names(self) -> list[str]:
        """Names of its tensors, in the order in which reading them is sequential."""
        ...

    def get(self, name: str) -> LazyTensor:
        """The tensor called `name`, one of `names()`."""
        ...

    def close(self) -> None:
        """Let go of the file; the next use opens it again."""
        ...


class SafetensorsShard:
    """A `.safetensors` file, memory-mapped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: safe_open | None = None
        self._num_bytes = 0  # handed out of the present mapping

    def names(self) -> list[str]:
        """See Shard. Raises: CheckpointError if the file is truncated or not safetensors."""
        return list(self._open().offset_keys())

    def get(self, name: str) -> LazyTensor:
        """See Shard. Raises: CheckpointError for a dtype that torch has no name for."""
        if self._num_bytes > BYTES_PER_MAPPING:
            self.close()
        tensor = SafetensorsTensor(self._open(), self.path, name)
        self._num_bytes += tensor.shape.numel() * tensor.dtype.itemsize
        return tensor

    def close(self) -> None:
        """See Shard."""
        self._file, self._num_bytes = None, 0

    def _open(self) -> safe_open:
        if self._file is None:
            try:
                self._file = safe_open(self.path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise damaged(self.path, error) from error
        return self._file


class SafetensorsTensor:
    """One tensor of a safetensors file."""

    def __init__(self, file: safe_open, path: Path, name: str) -> None:
        stored = file.get_slice(name)
        if stored.get_dtype() not in SAFETENSORS_DTYPES:
            raise CheckpointError(
                f"{path.name}: tensor {name} has dtype {stored.get_dtype()}, which cannot be loaded: "
                f"use one of {', '.join(SAFETENSORS_DTYPES)}"
            )
        self._file = file
        self._name = name
        self.shape = torch.Size(stored.get_shape())
        self.dtype = SAFETENSORS_DTYPES[stored.get_dtype()]

    def __getitem__(self, index: tuple[slice, ...], /) -> Tensor:
        """See LazyTensor. The part is a view of the mapped file."""
        return self._file.get_tensor(self._name)[index]


class PickleShard:
    """A `.bin` or `.pth` file, read by `torch.load(weights_only=True)` only: no code of it runs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tensors: Mapping[str, Tensor] | None = None

    def names(self) -> list[str]:
        """See Shard. Raises: CheckpointError if the file is damaged or holds more than tensors."""
        return list(self._open())

    def get(self, name: str) -> LazyTensor:
        """See Shard."""
        return self._open()[name]

    def close(self) -> None:
        """See Shard."""
        self._tensors = None

    def _open(self) -> Mapping[str, Tensor]:
        if self._tensors is None:
            self._tensors = dict(_tensors_of(_load_pickle(self.path), self.path))
        return self._tensors


def _load_pickle(path: Path) -> object:
    try:
        with path.open("rb") as file:
            is_zip = file.read(2) == b"PK"  # only torch's zip format, not that before 1.6, can map
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # an unpickler fed with noise raises whatever it stumbles over
        # By name, for nothing in this package imports the module that defines it.
        if type(error).__name__ == "UnpicklingError":
            raise CheckpointError(
                f"{path} holds pickled Python objects beside its tensors, which are never run: "
                "convert it to safetensors (models.ckpt_dir)"
            ) from error
        raise damaged(path, error) from error


def _tensors_of(loaded: object, path: Path) -> Iterator[tuple[str, Tensor]]:
    """The named tensors in what a file held, out of the wrappers of training scripts."""
    while isinstance(loaded, Mapping) and not any(isinstance(v, Tensor) for v in loaded.values()):
        inner = next((loaded[key] for key in _WRAPPERS if key in loaded), None)
        if inner is None:
            break
        loaded = inner
    if not isinstance(loaded, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(loaded).__name__} where named tensors were expected "
            "(models.ckpt_dir)"
        )
    return ((str(name), value) for name, value in loaded.items() if isinstance(value, Tensor))


def damaged(path: Path, error: Exception) -> CheckpointError:
    """The error for a file that cannot be read to its end."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return CheckpointError(
        f"{path} is truncated or damaged ({reason}): download it again (models.ckpt_dir)"
    )


def open_shard(path: Path) -> Shard:
    """The Shard for a file, by its suffix; nothing is read yet."""
    return SafetensorsShard(path) if path.suffix == ".safetensors" else PickleShard(path)
