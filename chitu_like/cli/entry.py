"""`chitu-like COMMAND ...`: find the command, run it, turn its outcome into an exit code."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from chitu_like import __version__
from chitu_like.cli.command_line import CommandModule, run_reporting
from chitu_like.core.ending import DONE
from chitu_like.core.errors import ConfigError
from chitu_like.openmp import wait_without_spinning

PROG = "chitu-like"


@dataclass(frozen=True, kw_only=True)
class Command:
    """A subcommand: its module is imported only when it is run, so that help comes at once.

    Attributes:
        name: as typed.
        module: where its `run` is.
        summary: one line for the overview.
    """

    name: str
    module: str
    summary: str

    def run(self, arguments: Sequence[str]) -> int:
        """Run it with the words after its name."""
        module = cast(CommandModule, importlib.import_module(self.module))
        return module.run(f"{PROG} {self.name}", arguments)


COMMANDS = (
    Command(name="serve", module="chitu_like.cli.serve", summary="serve a model over HTTP"),
    Command(name="chat", module="chitu_like.cli.chat", summary="chat in the terminal"),
    Command(
        name="generate",
        module="chitu_like.cli.generate",
        summary="answer the prompts of a file into a file",
    ),
    Command(
        name="bench",
        module="chitu_like.cli.bench",
        summary="measure a server, or the engine in this process",
    ),
    Command(
        name="doctor",
        module="chitu_like.cli.doctor",
        summary="will it fit, and with which settings? (loads no weights)",
    ),
    Command(
        name="preprocess",
        module="chitu_like.cli.preprocess",
        summary="cut and merge a checkpoint once, so that every start reads it fast",
    ),
    Command(
        name="plan",
        module="chitu_like.cli.plan",
        summary="where to put which layers, how to split prefill and decode, before anyone pays",
    ),
    Command(
        name="simulate",
        module="chitu_like.cli.simulate",
        summary="what a service would do, by the code that would do it",
    ),
    Command(
        name="import-helix",
        module="chitu_like.cli.import_helix",
        summary="clusters, placements and profiles of Helix for plan and simulate",
    ),
    Command(
        name="import-distserve",
        module="chitu_like.cli.import_distserve",
        summary="fits, capacities and workloads of DistServe for plan and simulate",
    ),
    Command(
        name="explain",
        module="chitu_like.cli.explain",
        summary="a key's meaning, default, value and where it comes from",
    ),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the words after `chitu-like`; None: of this process.

    Returns: 0 done, 2 the user's mistake (one line on stderr says which), 130 interrupted, 1 else.
    """
    wait_without_spinning()
    words = list(sys.argv[1:] if arguments is None else arguments)
    return run_reporting(PROG, lambda: _dispatch(words))


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return DONE
    if words[0] in ("-V", "--version"):
        print(f"{PROG} {__version__}")
        return DONE
    command = next((command for command in COMMANDS if command.name == words[0]), None)
    if command is None:
        raise ConfigError(_unknown_command(words[0]))
    try:
        return command.run(words[1:])
    except SystemExit as end:  # argparse leaves so after --help
        return end.code if isinstance(end.code, int) else DONE


def _unknown_command(word: str) -> str:
    names = [command.name for command in COMMANDS]
    close = difflib.get_close_matches(word, names, n=1)
    hint = f"did you mean {close[0]}?" if close else f"use one of {', '.join(names)}"
    return f"{word!r} is no command: {hint}"


def _overview() -> str:
    width = max(len(command.name) for command in COMMANDS)
    lines = [f"  {command.name:<{width}}  {command.summary}" for command in COMMANDS]
    return "\n".join(
        [
            f"usage: {PROG} COMMAND [options] [KEY=VALUE ...]",
            "",
            "Serve language models and talk to them. Without any key, everything runs the small",
            "chat model that comes with the package.",
            "",
            "commands:",
            *lines,
            "",
            f"  {PROG} COMMAND --help shows a command's options and examples,",
            f"  {PROG} --version the version.",
            "",
            "examples:",
            f"  {PROG} serve                                          # then open the address",
            f"  {PROG} chat models=auto models.ckpt_dir=/models/Qwen3-0.6B",
            f"  {PROG} doctor models=llama-3-8b                       # before the download",
        ]
    )
