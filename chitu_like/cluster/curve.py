"""A function known at some points, and straight lines between them."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise


class Curve:
    """Seconds by some amount of work.

    Args:
        xs: amounts, ascending, at least one.
        ys: seconds at each, finite and not negative.

    Raises: ValueError for anything else.
    """

    __slots__ = ("xs", "ys")

    def __init__(self, xs: Sequence[float], ys: Sequence[float]) -> None:
        if not xs or len(xs) != len(ys):
            raise ValueError(f"{len(xs)} amounts and {len(ys)} values: give as many, at least one")
        if not all(map(math.isfinite, (*xs, *ys))) or min(ys) < 0 or xs[0] < 0:
            raise ValueError("amounts and values must be finite numbers, 0 or more")
        for before, after in pairwise(xs):
            if not before < after:
                raise ValueError(f"{before:g} stands before {after:g}: amounts must ascend")
        self.xs = tuple(xs)
        self.ys = tuple(ys)

    def __call__(self, x: float) -> float:
        """The value at x; beyond the last point the last line goes on, before the first is the first."""
        xs, ys = self.xs, self.ys
        index = min(bisect_right(xs, x), len(xs) - 1)
        if index == 0 or x <= xs[0]:
            return ys[0]
        x0, y0 = xs[index - 1], ys[index - 1]
        return y0 + (ys[index] - y0) * (x - x0) / (xs[index] - x0)

    def covers(self, x: float) -> bool:
        """Whether x lies between the points."""
        return self.xs[0] <= x <= self.xs[-1]

    @property
    def points(self) -> list[tuple[float, float]]:
        """(x, y) in order."""
        return list(zip(self.xs, self.ys, strict=True))

    def __eq__(self, other: object) -> bool:
        """Whether the points are the same."""
        return isinstance(other, Curve) and self.points == other.points

    def __hash__(self) -> int:
        """Of the points."""
        return hash((self.xs, self.ys))

    def __repr__(self) -> str:
        """Ends alone."""
        return f"Curve({self.xs[0]:g} -> {self.ys[0]:g} ... {self.xs[-1]:g} -> {self.ys[-1]:g})"
