"""The helper that runs ranks: what goes wrong in one is told here, and none is left behind."""

import math
import multiprocessing

import pytest
from distributed.ranks import run_ranks


@pytest.mark.slow
def test_a_ranks_traceback_reaches_the_test() -> None:
    with pytest.raises(AssertionError, match=r"(?s)rank 0: Traceback.*math domain error"):
        run_ranks(math.log, 2)
    assert not multiprocessing.active_children()


def test_ranks_that_take_too_long_are_killed() -> None:
    with pytest.raises(AssertionError, match=r"ranks \[0, 1\] have not ended in time"):
        run_ranks(math.exp, 2, timeout_s=0.01)
    assert not multiprocessing.active_children()
