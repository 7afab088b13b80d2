"""Which files of a checkpoint folder hold the weights; nothing is opened but the index."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from chitu_like.core.errors import CheckpointError

META_FOLDER = "original"
MAX_INDEX_BYTES = 256 << 20  # the largest known index (DeepSeek-V3, 91,991 tensors) has 8.9 MB


class WeightFormat(enum.Enum):
    """How a folder stores its weights."""

    SAFETENSORS = enum.auto()
    PICKLE = enum.auto()
    META = enum.auto()


@dataclass(frozen=True, kw_only=True)
class WeightFiles:
    """The weight files of a folder.

    Attributes:
        format: how to read them.
        files: in name order, all present.
        index: tensor name -> file, as model.safetensors.index.json says; None without one.
    """

    format: WeightFormat
    files: tuple[Path, ...]
    index: dict[str, Path] | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(file.stat().st_size for file in self.files)


def find_weight_files(ckpt_dir: Path) -> WeightFiles:
    """Find the weights: safetensors before pickles, an index before a single file before a pattern.

    Raises: CheckpointError if there are none, or the index is damaged or names an absent file.
    """
    if not ckpt_dir.is_dir():
        raise CheckpointError(
            f"{ckpt_dir} is not a folder: name the checkpoint's (models.ckpt_dir)"
        )
    found = (
        _find(ckpt_dir, WeightFormat.SAFETENSORS, "model.safetensors", _loose_safetensors)
        or _find(ckpt_dir, WeightFormat.PICKLE, "pytorch_model.bin", _loose_pickles)
        or _find_meta_files(ckpt_dir)
    )
    if found is None:
        raise CheckpointError(
            f"{ckpt_dir} holds no weights: looked for *.safetensors, pytorch_model*.bin, *.pth and "
            f"{META_FOLDER}/consolidated.*.pth (models.ckpt_dir; models.load_format=dummy needs none)"
        )
    return found


def find_meta_folder(ckpt_dir: Path) -> Path | None:
    """The folder of Meta's own files (params.json, consolidated.*.pth): `ckpt_dir` or below it."""
    found = _find_meta_files(ckpt_dir)
    return found.files[0].parent if found else None


def _find(
    ckpt_dir: Path,
    weight_format: WeightFormat,
    single: str,
    loose: Callable[[Path], Iterable[Path]],
) -> WeightFiles | None:
    index_path = ckpt_dir / f"{single}.index.json"
    if index_path.is_file():
        index = _read_index(index_path)
        files = tuple(sorted(set(index.values())))
        return WeightFiles(format=weight_format, files=files, index=index)
    if (ckpt_dir / single).is_file():
        return WeightFiles(format=weight_format, files=(ckpt_dir / single,))
    files = tuple(sorted(loose(ckpt_dir)))
    return WeightFiles(format=weight_format, files=files) if files else None


def _loose_safetensors(ckpt_dir: Path) -> Iterable[Path]:
    # Mistral ships its weights a second time, under its own names, as consolidated*.safetensors.
    others = ("consolidated", "adapter")
    named = list(ckpt_dir.glob("model*.safetensors"))
    return named or [p for p in ckpt_dir.glob("*.safetensors") if not p.name.startswith(others)]


def _loose_pickles(ckpt_dir: Path) -> Iterable[Path]:
    named = list(ckpt_dir.glob("pytorch_model*.bin"))
    return named or [p for p in ckpt_dir.glob("*.pth") if not p.name.startswith("consolidated")]


def _find_meta_files(ckpt_dir: Path) -> WeightFiles | None:
    for folder in (ckpt_dir, ckpt_dir / META_FOLDER):
        files = tuple(sorted(folder.glob("consolidated.*.pth")))
        if files:
            return WeightFiles(format=WeightFormat.META, files=files)
    return None


def _read_index(path: Path) -> dict[str, Path]:
    """Tensor name -> file beside `path`; every file is there."""
    if path.stat().st_size > MAX_INDEX_BYTES:
        raise CheckpointError(f"{path} is larger than {MAX_INDEX_BYTES} bytes: not an index")
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        index = {str(name): path.parent / str(file) for name, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is not an index (JSON with a weight_map of tensor to file): download it again"
        ) from error
    for name, file in index.items():
        if file.parent != path.parent:
            raise CheckpointError(f"{path} puts tensor {name} outside the checkpoint: {file}")
    absent = sorted({file.name for file in index.values() if not file.is_file()})
    if absent:
        shown = ", ".join(absent[:3])
        raise CheckpointError(
            f"{path.name} names {len(absent)} file(s) that {path.parent} lacks, {shown} among them: "
            "finish the download (models.ckpt_dir)"
        )
    return index
