"""Block tables as compressed rows, by the reference and by its twin."""

import pytest
from interpreter import needs_interpreter, run_cases
from ops.flat_tables_cases import SHAPES, check

from chitu_like.ops.flat_tables import flatten_tables

CASES = "test/ops/flat_tables_cases.py"


@pytest.mark.parametrize(("num_reqs", "max_blocks", "block_size"), SHAPES)
def test_rows_stand_one_behind_the_other(num_reqs: int, max_blocks: int, block_size: int) -> None:
    check(flatten_tables, num_reqs, max_blocks, block_size, "cpu")


@needs_interpreter
def test_the_kernel_writes_the_same() -> None:
    run_cases(CASES, interpreted=True)


@pytest.mark.gpu
def test_the_compiled_kernel_writes_the_same() -> None:
    run_cases(CASES, interpreted=False)
