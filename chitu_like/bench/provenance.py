"""Where a number comes from: without date, machine, commit and command it is worth nothing."""

from __future__ import annotations

import datetime
import platform
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from chitu_like import __version__
from chitu_like.config.device_facts import GIB, DeviceFacts

PACKAGE_DIR = Path(__file__).resolve().parents[1]
GIT_TIMEOUT_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What must stand beside a result.

    Attributes:
        date: of the run, in UTC.
        machine: device, cores and memory.
        software: Python and package versions.
        commit: of this package's repository, "+" behind it if files differ; its version elsewhere.
        command: that measured it.
    """

    date: str
    machine: str
    software: str
    commit: str
    command: str


def provenance(prog: str, arguments: Sequence[str], facts: DeviceFacts | None) -> Provenance:
    """Describe this run.

    Args:
        prog: the benchmark as typed.
        arguments: its arguments.
        facts: of the device that computes; None where another machine does.
    """
    machine = platform.node() if facts is None else describe_device(facts)
    return Provenance(
        date=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        machine=machine,
        software=f"Python {platform.python_version()}, chitu_like {__version__}",
        commit=find_commit(),
        command=shlex.join([*prog.split(), *arguments]),
    )


def describe_device(facts: DeviceFacts) -> str:
    """A device in a few words."""
    memory = f"{facts.memory_bytes / GIB:.0f} GiB"
    return f"{facts.name}, {facts.num_cpu_cores} cores, {memory} ({facts.device})"


def find_commit() -> str:
    """The commit this package runs from, or its version where it is installed."""
    try:
        commit = _git("rev-parse", "--short=9", "HEAD")
        # Files of others that git does not know change no result.
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", str(PACKAGE_DIR))
    except (OSError, subprocess.SubprocessError):
        return f"version {__version__}"
    return f"{commit}+" if changed else commit


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments],
        cwd=PACKAGE_DIR,
        capture_output=True,
        text=True,
        timeout=GIT_TIMEOUT_S,
        check=True,
    )
    return done.stdout.strip()
