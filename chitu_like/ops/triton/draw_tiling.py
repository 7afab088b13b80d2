"""How a call of the drawing kernels is cut into programs."""

from __future__ import annotations

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


FEW_ROWS = DrawTiling(tile=1024, part=1024, step=1024, num_warps=8, plan_warps=8)
SOME_ROWS = DrawTiling(tile=4096, part=8192, step=1024, num_warps=8, plan_warps=8)
MANY_ROWS = DrawTiling(tile=4096, part=32768, step=1024, num_warps=8, plan_warps=8)


def tiling_for(num_rows: int) -> DrawTiling:
    """Small tiles let few rows fill the device, large ones spare many rows the starts of programs.

    The numbers are guesses, not measured yet. They are few, since each tiling is compiled.
    """
    if num_rows <= 8:
        return FEW_ROWS
    return SOME_ROWS if num_rows <= 64 else MANY_ROWS
