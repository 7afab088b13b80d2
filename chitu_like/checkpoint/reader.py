"""Lazy tensors by name, whatever a checkpoint folder looks like inside.

Example::

    with open_checkpoint(Path("/models/Qwen3-0.6B")) as reader:
        for name, tensor in reader:
            print(name, tensor.shape, tensor.dtype, tensor[(slice(0, 1),)])
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from chitu_like.checkpoint.base import CheckpointReader
from chitu_like.checkpoint.files import WeightFiles, WeightFormat, find_weight_files
from chitu_like.checkpoint.meta_llama import MetaLlamaReader
from chitu_like.checkpoint.shards import Shard, open_shard
from chitu_like.core.errors import CheckpointError
from chitu_like.quantization.parameter import LazyTensor


def open_checkpoint(ckpt_dir: Path) -> CheckpointReader:
    """Open a Hugging Face folder, or Meta's `original/` of Llama 3; reads no weights yet.

    Raises: CheckpointError if `ckpt_dir` holds no weights, or an index names an absent file.
    """
    found = find_weight_files(ckpt_dir)
    if found.format is WeightFormat.META:
        return MetaLlamaReader(ckpt_dir, found)
    return FolderReader(ckpt_dir, found)


class FolderReader(CheckpointReader):
    """The weight files of a Hugging Face folder, one open at a time."""

    def __init__(self, ckpt_dir: Path, found: WeightFiles) -> None:
        super().__init__(ckpt_dir, found.num_bytes)
        self._index = found.index
        self._shards = [open_shard(file) for file in found.files]

    def __iter__(self) -> Iterator[tuple[str, LazyTensor]]:
        """See CheckpointReader."""
        home: dict[str, Path] = dict(self._index or {})
        for shard in self._shards:
            names = shard.names()
            self._check_index(shard, names)
            for name in names:
                if home.setdefault(name, shard.path) == shard.path:
                    yield name, shard.get(name)
                elif self._index is None:
                    raise CheckpointError(
                        f"{self.ckpt_dir}: tensor {name} is in {home[name].name} and in "
                        f"{shard.path.name}: keep one of the files (models.ckpt_dir)"
                    )
            shard.close()

    def close(self) -> None:
        """See CheckpointReader."""
        for shard in self._shards:
            shard.close()

    def _check_index(self, shard: Shard, names: list[str]) -> None:
        promised = {name for name, file in (self._index or {}).items() if file == shard.path}
        absent = sorted(promised.difference(names))
        if absent:
            raise CheckpointError(
                f"{shard.path} lacks {len(absent)} tensor(s) that the index puts there, "
                f"{', '.join(absent[:3])} among them: download it again (models.ckpt_dir)"
            )
