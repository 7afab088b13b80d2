"""What all commands share: help that shows examples, mistakes in one line, exit codes."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import NoReturn, Protocol

from chitu_like.core.ending import FAILED, INTERRUPTED, USER_MISTAKE
from chitu_like.core.errors import ChituError, ConfigError

HELP_WIDTH = 90


class CommandModule(Protocol):
    """What the module of a command or benchmark holds."""

    def run(self, prog: str, arguments: Sequence[str]) -> int:
        """Run with the words after the command's name; returns the exit code."""
        ...


class Parser(argparse.ArgumentParser):
    """An argparse parser whose complaints are ConfigErrors of one line.

    Args:
        prog: the command as users type it.
        description: what it does, in a sentence or two.
        examples: command lines worth pasting, shown below the options.
    """

    def __init__(self, prog: str, description: str, examples: Sequence[str] = ()) -> None:
        shown = "".join(f"\n  {example}" for example in examples)
        super().__init__(
            prog=prog,
            description=textwrap.fill(description, HELP_WIDTH),
            epilog=f"examples:{shown}" if examples else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,  # an abbreviation would change its meaning with the next option
        )

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the whole usage."""
        raise ConfigError(f"{message}; see {self.prog} --help")

    def add_overrides(self) -> None:
        """Take configuration keys anywhere on the command line."""
        self.add_argument(
            "overrides",
            nargs="*",
            metavar="KEY=VALUE",
            help="configuration keys, e.g. models=auto models.ckpt_dir=/path infer.device=cpu; "
            "`chitu-like explain` lists them",
        )


def run_reporting(prog: str, run: Callable[[], int]) -> int:
    """Run a command; a mistake of the user's becomes one line on standard error.

    Args:
        prog: what the line begins with.
        run: the command; returns its exit code.

    Returns: the exit code: 2 for the user's mistake, 130 for Ctrl-C, else run's own.
    Raises: whatever else happens, so that Python shows the trace and exits with 1.
    """
    try:
        code = run()
        sys.stdout.flush()
    except ChituError as error:
        sys.stdout.flush()
        print(f"{prog}: {' '.join(str(error).split())}", file=sys.stderr)
        return USER_MISTAKE
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has seen enough. Python flushes at exit: let that find no pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    return code


def positive_int(text: str) -> int:
    """An argument that must be a whole number above 0."""
    value = int(text) if text.isascii() and text.isdecimal() and len(text) < 12 else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return value


def count(text: str) -> int:
    """An argument that must be a whole number, 0 included."""
    return 0 if text == "0" else positive_int(text)


def positive_float(text: str) -> float:
    """An argument that must be a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def positive_floats(text: str) -> list[float]:
    """A comma list of numbers above 0."""
    return [positive_float(part.strip()) for part in text.split(",")]


def positive_ints(text: str) -> list[int]:
    """A comma list of whole numbers above 0."""
    return [positive_int(part.strip()) for part in text.split(",")]
