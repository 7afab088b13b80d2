"""The skinny linear kernel, in Triton's interpreter and on a GPU, and compiled for one."""

import pytest
from interpreter import needs_interpreter, run_cases

CASES = "test/ops/skinny_linear_cases.py"
COMPILED_CASES = "test/ops/skinny_linear_compiled_cases.py"


@needs_interpreter
def test_the_kernel_computes_what_the_reference_does() -> None:
    run_cases(CASES, "-m", "not slow and not gpu", interpreted=True)


@needs_interpreter
@pytest.mark.slow
def test_the_kernel_computes_what_the_reference_does_for_every_shape() -> None:
    run_cases(CASES, "-m", "slow and not gpu", interpreted=True)


@pytest.mark.gpu
def test_the_compiled_kernel_computes_what_the_reference_does_for_every_shape() -> None:
    run_cases(CASES, "--slow", interpreted=False)


@needs_interpreter
@pytest.mark.slow
def test_every_candidate_compiles_for_hopper_and_spills_nothing() -> None:
    run_cases(COMPILED_CASES, interpreted=False)
