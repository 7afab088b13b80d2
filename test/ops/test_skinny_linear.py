"""The skinny linear kernel, in Triton's interpreter and on a GPU."""

import importlib.util
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
CASES = "test/ops/skinny_linear_cases.py"


def run_cases(*options: str, interpreted: bool) -> None:
    """Run the cases in a process of its own: the variable counts when triton is imported."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", CASES, "-q", "-p", "no:cacheprovider", *options],
        cwd=REPO,
        env={**os.environ, "TRITON_INTERPRET": "1" if interpreted else "0"},
        capture_output=True,
        text=True,
        timeout=280,
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
def test_the_kernel_computes_what_the_reference_does() -> None:
    run_cases("-m", "not slow and not gpu", interpreted=True)


@needs_interpreter
@pytest.mark.slow
def test_the_kernel_computes_what_the_reference_does_for_every_shape() -> None:
    run_cases("-m", "slow and not gpu", interpreted=True)


@pytest.mark.gpu
def test_the_compiled_kernel_computes_what_the_reference_does_for_every_shape() -> None:
    run_cases("--slow", interpreted=False)
