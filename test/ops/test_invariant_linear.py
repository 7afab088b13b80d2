"""The linear kernel of infer.deterministic, in Triton's interpreter and on a GPU."""

import pytest
from interpreter import needs_interpreter, run_cases

CASES = "test/ops/invariant_linear_cases.py"


@needs_interpreter
def test_it_is_a_linear_layer() -> None:
    run_cases(CASES, interpreted=True)


@pytest.mark.gpu
def test_a_token_gets_the_same_bits_in_every_company() -> None:
    run_cases(CASES, interpreted=False)
