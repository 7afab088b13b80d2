"""Block tables as compressed rows, by the reference; its twin is tested by test_kernels.py."""

import pytest
from ops.flat_tables_cases import SHAPES, check

from chitu_like.ops.flat_tables import flatten_tables


@pytest.mark.parametrize(("num_reqs", "max_blocks", "block_size"), SHAPES)
def test_rows_stand_one_behind_the_other(num_reqs: int, max_blocks: int, block_size: int) -> None:
    check(flatten_tables, num_reqs, max_blocks, block_size, "cpu")
