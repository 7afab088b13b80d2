"""How a call of the drawing kernels is cut into programs."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DrawTiling:
    """Sizes, all powers of 2. Whatever they are, the same tokens are drawn: all sums are integers.

    Attributes:
        tile: tokens of a program that looks for the best ones.
        part: of one that looks at a row for the second time, or the third.
        step: of them, how many at once.
        num_warps: of such programs.
        plan_warps: of a program that looks at what the first found of a row.
        group: tokens of which the best is noted.
        capacity: tokens that each of a row's lists holds.
        chunk: of them, how many are loaded together.
        sample: tokens whose noise tells what a token must reach to be drawn.
    """

    tile: int
    part: int
    step: int
    num_warps: int
    plan_warps: int
    group: int = 64
    capacity: int = 8192
    chunk: int = 1024
    sample: int = 1024


TILINGS = (
    DrawTiling(tile=1024, part=1024, step=1024, num_warps=8, plan_warps=8),
    DrawTiling(tile=2048, part=2048, step=2048, num_warps=8, plan_warps=8),
    DrawTiling(tile=4096, part=8192, step=1024, num_warps=8, plan_warps=8),
    DrawTiling(tile=4096, part=16384, step=1024, num_warps=8, plan_warps=8),
)
"""For more and more rows: small tiles let few rows fill the device, large ones spare many rows the
starts of programs. Measured for 1, 8, 64 and 256 rows on an H200 beside four to six others, over twelve
kinds of rows (benchmarks/RESULTS.md): by the geometric mean each is the best but the third, whose better
by 2 % spills registers with Triton 3.9. They are few, since each is compiled."""

_MOST_ROWS = (1, 8, 64)  # of each tiling but the last


def tiling_for(num_rows: int) -> DrawTiling:
    """The tiling that so many rows are drawn with."""
    return TILINGS[bisect_left(_MOST_ROWS, num_rows)]


def row_counts(max_rows: int) -> list[int]:
    """Numbers of rows, in order, that among them use every tiling that up to `max_rows` rows use."""
    return sorted({min(count, max_rows) for count in (*_MOST_ROWS, max_rows)})
