"""`chitu-like preprocess`: cut and merge a checkpoint once, so that every start reads it fast."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from chitu_like.cli.command_line import Parser
from chitu_like.config.load import load_config
from chitu_like.core.ending import DONE, USER_MISTAKE
from chitu_like.core.errors import ChituError, ConfigError

if TYPE_CHECKING:
    from chitu_like.checkpoint.preprocess import Receipt
    from chitu_like.core.manifest import Plan
    from chitu_like.preprocess import Preprocessing

FOLDER_VARIABLE = "PREPROCESS_AND_SAVE_DIR"
LAST_WORDS_S = 3.0
"""torchrun ends all processes with the first; process 0 says what is wrong, the others wait for it."""


@dataclass(frozen=True, kw_only=True)
class Words:
    """The command line.

    Attributes:
        folder: to write.
        overwrite: whether a preprocessed folder may be written anew.
        overrides: configuration keys.
    """

    folder: Path
    overwrite: bool
    overrides: tuple[str, ...]

    @classmethod
    def read(cls, words: Sequence[str], environ: Mapping[str, str]) -> Words:
        """Take `out=` and `overwrite=` from among the configuration keys.

        Raises: ConfigError where they are missing, wrong, or contradict the environment.
        """
        own = dict(word.split("=", 1) for word in words if word.startswith(("out=", "overwrite=")))
        named, out = environ.get(FOLDER_VARIABLE) or None, own.get("out") or None
        if named is not None and out is not None and named != out:
            raise ConfigError(f"out={out} contradicts {FOLDER_VARIABLE}={named}: leave one out")
        folder = out or named
        if folder is None:
            raise ConfigError(f"no folder to write: add out=DIR, or set {FOLDER_VARIABLE}=DIR")
        overwrite = own.get("overwrite", "false").lower()
        if overwrite not in ("true", "false"):
            raise ConfigError(f"overwrite={overwrite}: use true or false")
        others = (word for word in words if word.partition("=")[0] not in ("out", "overwrite"))
        return cls(
            folder=Path(folder).expanduser(),
            overwrite=overwrite == "true",
            overrides=tuple(others),
        )


def run(prog: str, arguments: Sequence[str], environ: Mapping[str, str] = os.environ) -> int:
    """Write this process's share of the files; under torchrun each process writes some ranks'.

    Raises: ChituError if something cannot be read, cut or written.
    """
    parser = Parser(
        prog,
        "Write a checkpoint as the ranks will hold it: a file for each of infer.tp_size x "
        "infer.pp_size ranks, cut for it, with Q, K, V and gate, up merged, in the dtype asked for. "
        "With one rank the weights are merged only. A service then reads only its ranks' own files, "
        "in one run each. Needs no GPU, and memory for one rank's file per process. Started by "
        "torchrun with any number of processes, they share the files among them. A run that was cut "
        "short goes on where it stopped; a whole folder is only replaced with overwrite=true.",
        [
            f"{prog} out=DIR models=auto models.ckpt_dir=/models/Qwen3-0.6B",
            f"{prog} out=DIR models=auto models.ckpt_dir=/models/Llama-3-70B infer.tp_size=8",
            f"{FOLDER_VARIABLE}=DIR torchrun --nproc_per_node 4 script/preprocess_and_save.py "
            "models=auto models.ckpt_dir=/models/Llama-3-70B infer.tp_size=8",
            "chitu-like serve models=auto models.ckpt_dir=DIR models.tokenizer_path=DIR "
            "skip_preprocess=True infer.tp_size=8",
        ],
    )
    parser.add_overrides()
    given = parser.parse_intermixed_args(arguments).overrides
    process, num_processes = int(environ.get("RANK", "0")), int(environ.get("WORLD_SIZE", "1"))
    try:
        words = Words.read(given, environ)
        preprocessing = _plan(words, environ)
        is_whole = preprocessing.writer.begin(overwrite=words.overwrite) is not None
    except ChituError:
        if process == 0:
            raise
        time.sleep(LAST_WORDS_S)
        return USER_MISTAKE
    console = Console(highlight=False, soft_wrap=True)
    if is_whole:
        if process == 0:
            console.print(f"{words.folder} is whole already, from this very checkpoint")
        return DONE
    _write(preprocessing, process, num_processes)
    receipts = preprocessing.writer.finish()
    if receipts is not None:
        _report(console, words.folder, preprocessing.writer.plan, receipts)
    return DONE


def _plan(words: Words, environ: Mapping[str, str]) -> Preprocessing:
    config = load_config(words.overrides, environ=environ)
    from chitu_like.preprocess import Preprocessing  # torch takes seconds, `--help` needs none

    return Preprocessing.plan(config, words.folder)


def _write(preprocessing: Preprocessing, process: int, num_processes: int) -> None:
    """Write the files of the ranks process, process + num_processes, ..."""
    is_first = process == 0
    if is_first:
        names = preprocessing.add_files()
        if not any(name.startswith(("tokenizer", "vocab", "original")) for name in names):
            print("no tokenizer is there to be copied: token ids in and out", file=sys.stderr)
    for place in preprocessing.writer.plan.places()[process::num_processes]:
        preprocessing.write_rank(*place, progress=is_first)


def _report(console: Console, folder: Path, plan: Plan, receipts: Sequence[Receipt]) -> None:
    table = Table(
        "rank", "stage", "tp", "file", "tensors", "GB", "seconds", title=Text(str(folder))
    )
    for number, receipt in enumerate(receipts):
        rank = receipt.rank
        cells = (number, rank.pp_rank, rank.tp_rank, rank.file, rank.num_tensors)
        sizes = (f"{rank.num_bytes / 1e9:.3f}", f"{receipt.seconds:.1f}")
        table.add_row(*map(str, cells), *sizes)
    console.print(table)
    console.print(
        f"{plan.architecture} in {plan.dtype} for {plan.keys}; to serve it: models=auto "
        f"models.ckpt_dir={folder} models.tokenizer_path={folder} skip_preprocess=True {plan.keys}",
        markup=False,
    )
