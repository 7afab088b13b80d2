"""Triton's kernels against their references: in its interpreter on a CPU, compiled on a CUDA device.

The cases stand beside the tests of what they belong to, in files named *_cases.py, which pytest does
not collect by itself: whether Triton interprets is settled when it is imported, so they run in
processes of their own. Files named *_compiled_cases.py compile kernels for a GPU that need not be there.

By hand: `TRITON_INTERPRET=1 pytest test/ops/draw_cases.py --slow` on a CPU, and without the variable on
a CUDA device.
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
ALL_CASES = sorted(str(path.relative_to(REPO)) for path in (REPO / "test").rglob("*_cases.py"))
COMPILED_CASES = [path for path in ALL_CASES if path.endswith("_compiled_cases.py")]
CASES = [path for path in ALL_CASES if path not in COMPILED_CASES]


def run_cases(paths: list[str], *options: str, interpreted: bool) -> None:
    """Run the cases of some files with pytest's `options`."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *paths, "-q", "-p", "no:cacheprovider", *options],
        cwd=REPO,
        env={**os.environ, "TRITON_INTERPRET": "1" if interpreted else "0"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def version_of(package: str) -> tuple[int, ...]:
    return tuple(int(part) for part in metadata.version(package).split(".")[:2])


def why_no_interpreter() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "needs triton: pip install triton"
    if version_of("triton") < (3, 7) and version_of("numpy") >= (2, 4):
        return "the interpreter of Triton before 3.7 does not run with numpy from 2.4 on"
    return None


needs_interpreter = pytest.mark.skipif(
    why_no_interpreter() is not None, reason=str(why_no_interpreter())
)


@needs_interpreter
def test_kernels_compute_what_their_references_do() -> None:
    run_cases(CASES, "-m", "not slow and not gpu", interpreted=True)


@needs_interpreter
@pytest.mark.slow
def test_kernels_compute_what_their_references_do_in_every_case() -> None:
    run_cases(CASES, "-m", "slow and not gpu", interpreted=True)


@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs triton: pip install triton"
)
@pytest.mark.slow
def test_kernels_compile_for_hopper_without_spills() -> None:
    run_cases(COMPILED_CASES, interpreted=False)


@pytest.mark.gpu
@pytest.mark.parametrize("path", CASES)
def test_compiled_kernels_compute_what_their_references_do(path: str) -> None:
    run_cases([path], "--slow", interpreted=False)
