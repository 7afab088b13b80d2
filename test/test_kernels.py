"""Triton's kernels against their references: in its interpreter on a CPU, compiled on a CUDA device.

The cases stand beside the tests of what they belong to, in files named *_cases.py, which pytest does
not collect by itself: whether Triton interprets is settled when it is imported, so they run in
processes of their own. Files named *_compiled_cases.py compile kernels for a GPU that need not be there.

By hand: `TRITON_INTERPRET=1 pytest test/ops/draw_cases.py --slow` on a CPU, and without the variable on
a CUDA device. There Triton compiles every combination of a dtype and a shape, for half a second or more,
so the tests here run a sample of the slow cases, all files side by side.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
ALL_CASES = sorted(str(path.relative_to(REPO)) for path in (REPO / "test").rglob("*_cases.py"))
COMPILED_CASES = [path for path in ALL_CASES if path.endswith("_compiled_cases.py")]
CASES = [path for path in ALL_CASES if path not in COMPILED_CASES]


SAMPLE = 11
"""Of the slow cases every so many-th runs compiled: a prime, so that all values of each parameter come."""
MAX_PROCESSES = 14
LIMIT_S = 600
pytestmark = pytest.mark.timeout(LIMIT_S + 60)


def run_cases(paths: list[str], *options: str, interpreted: bool) -> str:
    """Run the cases of some files with pytest's `options`; returns what it says, "" if all pass."""
    # Interrupted, pytest says what failed until then; killed, it says nothing.
    limit = ("timeout", "-s", "INT", "-k", "10", str(LIMIT_S))
    done = subprocess.run(
        [*limit, sys.executable, "-m", "pytest", *paths, "-q", "-p", "no:cacheprovider", *options],
        cwd=REPO,
        env={**os.environ, "TRITON_INTERPRET": "1" if interpreted else "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr if done.returncode else ""


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
    said = run_cases(CASES, "-m", "not slow and not gpu", interpreted=True)
    assert not said, said


@needs_interpreter
@pytest.mark.slow
def test_kernels_compute_what_their_references_do_in_every_case() -> None:
    said = run_cases(CASES, "-m", "slow and not gpu", interpreted=True)
    assert not said, said


@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs triton: pip install triton"
)
@pytest.mark.slow
def test_kernels_compile_for_hopper_without_spills() -> None:
    said = run_cases(COMPILED_CASES, interpreted=False)
    assert not said, said


@pytest.fixture(scope="module")
def compiled_runs() -> Iterator[dict[str, Future[str]]]:
    """What pytest says of each file; they run side by side."""
    options = ("--slow", "--sample", str(SAMPLE))
    with ThreadPoolExecutor(MAX_PROCESSES) as pool:
        yield {path: pool.submit(run_cases, [path], *options, interpreted=False) for path in CASES}


@pytest.mark.gpu
@pytest.mark.parametrize("path", CASES)
def test_compiled_kernels_compute_what_their_references_do(
    path: str, compiled_runs: dict[str, Future[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    said = compiled_runs[path].result()
    with capsys.disabled():
        print(said, end="", flush=True)  # at once: the rest may take longer than there is time
    assert not said, f"{path} failed: see above"
