"""Write a preprocessed folder: any number of processes, each some ranks' files, without a word.

A folder passes through three states: empty; unfinished, which `unfinished.json` tells with all that
decides what the files will be; whole, which `manifest.json` tells. Beside each rank's file a small
receipt says by which plan it was made. Whoever finds the receipts of all ranks writes the manifest,
so nobody waits for anybody, and a run that was cut short goes on where it stopped.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec
from torch import Tensor, nn

from chitu_like.checkpoint.atomic_file import atomic_file, is_temporary
from chitu_like.checkpoint.loader import LoadableModel
from chitu_like.checkpoint.rank_file import Advance, digest_of, write_rank_file
from chitu_like.core.errors import CheckpointError
from chitu_like.core.manifest import (
    MANIFEST_FILE,
    UNFINISHED_FILE,
    Manifest,
    Plan,
    RankFile,
    find_unfinished,
    find_whole,
)
from chitu_like.models.weight_map import WeightMap

_RANK_FILE = re.compile(r"rank-\d+-\d+\.(safetensors|json)")


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """Says that a rank's file is whole.

    Attributes:
        plan: digest of the plan that it was made by.
        rank: its entry in the manifest.
        seconds: that reading and writing took.
    """

    plan: str
    rank: RankFile
    seconds: float


class WithoutModules:
    """A model whose parameters are filled and then left as they are: no `process_after_load`.

    Args:
        model: the whole of it.
    """

    def __init__(self, model: LoadableModel) -> None:
        self._model = model

    def weight_map(self) -> WeightMap:
        """See LoadableModel."""
        return self._model.weight_map()

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """See LoadableModel."""
        return self._model.named_parameters()

    def modules(self) -> Iterable[nn.Module]:
        """None: a module would bring its weights into the form that its kernel wants."""
        return ()


class FolderWriter:
    """One process's hand in writing a folder.

    Args:
        folder: made where it does not exist.
        plan: what all its files have in common; equal in every process.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder = folder
        self.plan = plan

    def begin(self, *, overwrite: bool) -> Manifest | None:
        """Claim the folder.

        Args:
            overwrite: a folder that was written by another plan, or is whole, is written anew.

        Returns: the manifest where all has been done by this plan already; else None.
        Raises: CheckpointError if the folder holds something else, or cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            return self._claim(overwrite)
        except OSError as error:
            raise self._failed(error) from error

    def _claim(self, overwrite: bool) -> Manifest | None:
        whole, unfinished = find_whole(self.folder), find_unfinished(self.folder)
        if whole is not None and not overwrite:
            if _plan_of(whole) == self.plan:
                self._clear_away({rank.file for rank in whole.ranks})
                return whole
            raise self._taken("was written", whole)
        if unfinished is not None and unfinished != self.plan and not overwrite:
            raise self._taken("is half-written", unfinished)
        if unfinished is None and whole is None:
            self._require_empty()
        # First this, then the manifest goes: the folder is ours at every moment. A manifest that was
        # not there above is the work of the others, who are done.
        self._put(UNFINISHED_FILE, self.plan)
        if whole is not None:
            (self.folder / MANIFEST_FILE).unlink(missing_ok=True)
        return None

    def receipt(self, pp_rank: int, tp_rank: int) -> Receipt | None:
        """What says that a rank's file is there by this plan; None: it has yet to be written."""
        path = self.folder / f"{_stem(pp_rank, tp_rank)}.json"
        try:
            receipt = msgspec.json.decode(path.read_bytes(), type=Receipt)
            size = (self.folder / receipt.rank.file).stat().st_size
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as error:
            raise CheckpointError(f"{path} is damaged ({error}): remove it") from None
        return receipt if (receipt.plan, receipt.rank.num_bytes) == (self._digest, size) else None

    def write(
        self,
        pp_rank: int,
        tp_rank: int,
        tensors: Mapping[str, Tensor],
        advance: Advance,
        *,
        start_s: float,
    ) -> Receipt:
        """Write the file of a rank, and then its receipt.

        Args:
            pp_rank: its stage.
            tp_rank: its place there.
            tensors: its parameters by name, on a CPU.
            advance: told of the bytes.
            start_s: when work on this rank began, by time.perf_counter.

        Raises: CheckpointError if the disk is full or the like.
        """
        stem = _stem(pp_rank, tp_rank)
        try:
            (self.folder / f"{stem}.json").unlink(missing_ok=True)
            path = self.folder / f"{stem}.safetensors"
            rank = RankFile(
                pp_rank=pp_rank,
                tp_rank=tp_rank,
                file=path.name,
                num_tensors=len(tensors),
                num_bytes=write_rank_file(path, tensors, advance),
                digest=digest_of(tensors),
            )
            seconds = time.perf_counter() - start_s
            receipt = Receipt(plan=self._digest, rank=rank, seconds=seconds)
            self._put(f"{stem}.json", receipt)
        except OSError as error:
            raise self._failed(error) from error
        return receipt

    def add_file(self, name: str, content: bytes) -> None:
        """Put a small file beside the weights. Raises: CheckpointError if it cannot be written."""
        try:
            path = self.folder / name
            path.parent.mkdir(exist_ok=True)
            with atomic_file(path) as file:
                file.write(content)
        except OSError as error:
            raise self._failed(error) from error

    def finish(self) -> list[Receipt] | None:
        """Write the manifest if the files of all ranks are there, and clear away what else is ours.

        Returns: the receipts in the order of the ranks; None where somebody has yet to write some,
            or has finished in the same moment and was the first to say so.
        """
        try:
            receipts = [self.receipt(*place) for place in self.plan.places()]
            present = [receipt for receipt in receipts if receipt is not None]
            if len(present) < len(receipts):
                return None
            fields = msgspec.structs.asdict(self.plan)
            self._put(MANIFEST_FILE, Manifest(ranks=tuple(r.rank for r in present), **fields))
            is_first = self._clear_away({receipt.rank.file for receipt in present})
        except OSError as error:
            raise self._failed(error) from error
        return present if is_first else None

    @property
    def _digest(self) -> str:
        return self.plan.digest

    def _put(self, name: str, content: msgspec.Struct) -> None:
        with atomic_file(self.folder / name) as file:
            file.write(msgspec.json.format(msgspec.json.encode(content)) + b"\n")

    def _require_empty(self) -> None:
        # Of a process that is just claiming the folder too there may be a temporary file.
        found = [path.name for path in self.folder.iterdir() if not is_temporary(path.name)]
        if found and find_unfinished(self.folder) is None:
            raise CheckpointError(
                f"{self.folder} is not empty ({sorted(found)[0]} is there) and was not written by "
                "preprocess_and_save: name another folder"
            )

    def _clear_away(self, kept: set[str]) -> bool:
        """Remove receipts, what an earlier plan left, and files that nobody finished.

        Returns: whether it was this process that removed the last sign of being unfinished.
        """
        for path in self.folder.iterdir():
            is_left_over = _RANK_FILE.fullmatch(path.name) and path.name not in kept
            is_rank_s_temporary = is_temporary(path.name) and path.name.startswith(".rank-")
            if is_left_over or is_rank_s_temporary:
                path.unlink(missing_ok=True)
        try:
            (self.folder / UNFINISHED_FILE).unlink()
        except FileNotFoundError:
            return False
        return True

    def _taken(self, state: str, plan: Plan) -> CheckpointError:
        return CheckpointError(
            f"{self.folder} {state} from {plan.architecture} in {plan.dtype} for {plan.keys}: add "
            "overwrite=true to write it anew, or name another folder"
        )

    def _failed(self, error: OSError) -> CheckpointError:
        free = shutil.disk_usage(self.folder).free / 1e9 if self.folder.is_dir() else 0.0
        return CheckpointError(
            f"{self.folder} cannot be written: {error.strerror or error} ({free:.1f} GB are free "
            "there): make room, or name another folder"
        )


def _plan_of(manifest: Manifest) -> Plan:
    fields = msgspec.structs.asdict(manifest)
    del fields["ranks"]
    return Plan(**fields)


def _stem(pp_rank: int, tp_rank: int) -> str:
    return f"rank-{pp_rank}-{tp_rank}"
