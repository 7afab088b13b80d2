"""Runs files of Triton's cases: in its interpreter on a CPU, compiled on a CUDA device.

Whether Triton interprets is settled when it is imported, so such a file runs in a process of its own.
It is named *_cases.py, which pytest does not collect by itself.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]


def run_cases(path: str, *options: str, interpreted: bool) -> None:
    """Run the cases of `path`, below the repository's root, with pytest's `options`."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", path, "-q", "-p", "no:cacheprovider", *options],
        cwd=REPO,
        env={**os.environ, "TRITON_INTERPRET": "1" if interpreted else "0"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _version_of(package: str) -> tuple[int, ...]:
    return tuple(int(part) for part in metadata.version(package).split(".")[:2])


def _why_no_interpreter() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "needs triton: pip install triton"
    if _version_of("triton") < (3, 7) and _version_of("numpy") >= (2, 4):
        return "the interpreter of Triton before 3.7 does not run with numpy from 2.4 on"
    return None


needs_interpreter = pytest.mark.skipif(
    _why_no_interpreter() is not None, reason=str(_why_no_interpreter())
)
