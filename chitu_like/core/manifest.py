"""The manifest of a preprocessed folder: for which ranks its files are, and what is in each.

`preprocess_and_save` writes it last of all, so a folder that has one is whole. It is read without
torch: a configuration that does not fit is refused before anything starts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal, TypeVar

import msgspec

from chitu_like.core.errors import CheckpointError
from chitu_like.core.model_spec import ModelSpec

MANIFEST_FILE = "manifest.json"
UNFINISHED_FILE = "unfinished.json"  # stands there until the manifest does
FORMAT: Final = "chitu_like preprocessed"
VERSION = 1
MAX_FILE_BYTES = 16 << 20  # a rank takes about 200 bytes

# Fields of ModelSpec that no weight depends on: they may still be overridden when serving.
_FREE_FIELDS = {
    "model_type",
    "dtype",
    "eos_token_ids",
    "bos_token_id",
    "rope",
    "max_position_embeddings",
    "norm_eps",
    "layer_windows",
    "hidden_act",
}


class RankFile(msgspec.Struct, frozen=True, kw_only=True):
    """The file of one rank.

    Attributes:
        pp_rank, tp_rank: its stage, and its place there.
        file: name within the folder.
        num_tensors: parameters in it.
        num_bytes: of the whole file.
        digest: of the names, shapes and dtypes of its tensors; see checkpoint/rank_file.py.
    """

    pp_rank: int
    tp_rank: int
    file: str
    num_tensors: int
    num_bytes: int
    digest: str


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What all files of a folder have in common, known before the first is written.

    Attributes:
        format, version: tell our manifests from others, and old ones from new.
        architecture: as in config.json.
        spec: digest of the shape that the weights follow; see `digest_of_spec`.
        source: digest of what the weights were read from.
        tp_size: ranks of a stage.
        layer_partition: layers of each stage.
        merged: parameter of this package -> modules of the checkpoint stacked in it, in order.
        dtype: of the weights: bfloat16, float16 or float32.
        quant: scheme that the weights are stored in; None: as they are. What a scheme needs beside
            its name goes into fields of its own, what it stores per tensor into the rank's file.
    """

    architecture: str
    spec: str
    source: str
    tp_size: int
    layer_partition: tuple[int, ...]
    merged: dict[str, tuple[str, ...]]
    dtype: str
    quant: str | None = None
    format: Literal["chitu_like preprocessed"] = FORMAT
    version: int = VERSION

    @property
    def pp_size(self) -> int:
        """Number of stages."""
        return len(self.layer_partition)

    @property
    def digest(self) -> str:
        """Equal for equal plans."""
        return _digest(msgspec.json.encode(msgspec.structs.asdict(self), order="sorted"))

    @property
    def keys(self) -> str:
        """The keys that ask for this layout, as users type them."""
        return keys_of_layout(self.tp_size, self.layer_partition)

    def places(self) -> list[tuple[int, int]]:
        """(pp_rank, tp_rank) of every rank, in the order of the ranks."""
        return [(pp, tp) for pp in range(self.pp_size) for tp in range(self.tp_size)]

    def layers(self, pp_rank: int) -> range:
        """Global indices of a stage's layers."""
        first = sum(self.layer_partition[:pp_rank])
        return range(first, first + self.layer_partition[pp_rank])


class Manifest(Plan, frozen=True, kw_only=True):
    """A plan that was carried out.

    Attributes:
        ranks: one for each of `places`, in their order.
    """

    ranks: tuple[RankFile, ...]


def keys_of_layout(tp_size: int, layer_partition: Sequence[int]) -> str:
    """The keys that ask for a layout, whatever another version would balance by itself."""
    keys = f"infer.tp_size={tp_size} infer.pp_size={len(layer_partition)}"
    if len(layer_partition) == 1:
        return keys
    return f"{keys} infer.pp_layer_partition=[{','.join(map(str, layer_partition))}]"


_T = TypeVar("_T", bound=Plan)


def digest_of_spec(spec: ModelSpec) -> str:
    """Equal for specs whose weights have the same names and meaning.

    A field that is None does not count, so a new family's own fields change no old digest.
    """
    fields = dataclasses.asdict(spec)
    counted = {k: v for k, v in fields.items() if k not in _FREE_FIELDS and v is not None}
    return _digest(json.dumps(counted, sort_keys=True).encode())


def find_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder; None where it has none, or somebody else's.

    Raises: CheckpointError if it is damaged or of another version, or the folder is half-written.
    """
    manifest = find_whole(folder)
    if manifest is None and find_unfinished(folder) is not None:
        raise CheckpointError(
            f"{folder} is half-written, preprocess_and_save did not come to its end: run it again "
            "with the same words, it goes on where it stopped"
        )
    return manifest


def find_whole(folder: Path) -> Manifest | None:
    """The same for whoever writes: a folder that is half-written has no manifest yet.

    Raises: CheckpointError if the manifest is damaged or of another version.
    """
    path = folder / MANIFEST_FILE
    manifest = _read(path, Manifest)
    if manifest is None:
        return None
    if min(manifest.layer_partition, default=0) < 1 or manifest.tp_size < 1:
        raise _damaged(path, "it is for no rank")
    if len(manifest.ranks) != manifest.tp_size * manifest.pp_size or manifest.places() != [
        (rank.pp_rank, rank.tp_rank) for rank in manifest.ranks
    ]:
        raise _damaged(path, f"its ranks are not those of {manifest.keys}")
    if odd := [rank.file for rank in manifest.ranks if Path(rank.file).name != rank.file]:
        raise _damaged(path, f"{odd[0]} lies outside the folder")
    return manifest


def find_unfinished(folder: Path) -> Plan | None:
    """What a folder will hold that is being written, or was and is not whole.

    Raises: CheckpointError if the file that says so is damaged or of another version.
    """
    return _read(folder / UNFINISHED_FILE, Plan)


def _read(path: Path, kind: type[_T]) -> _T | None:
    """One of our files; None where there is none, or it is somebody else's."""
    try:
        with path.open("rb") as file:
            values = msgspec.json.decode(file.read(MAX_FILE_BYTES))
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            return None
        if values.get("version") != VERSION:
            raise CheckpointError(
                f"{path} is of version {values.get('version')} but this package reads {VERSION}: "
                "preprocess the checkpoint again, into another folder"
            )
        return msgspec.convert(values, kind)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise _damaged(path, str(error)) from None


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is damaged ({reason}): preprocess the checkpoint again, into another folder"
    )


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
