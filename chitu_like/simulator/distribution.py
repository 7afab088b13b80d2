"""How values are spread, in memory that does not grow with their number."""

from __future__ import annotations

import math
from collections import Counter

STEPS_PER_E = 1000
"""Bins for each factor of e: a value is known to a thousandth of itself, a quantile to half of that."""
ZERO = -(10**9)
"""The bin of everything that is not above 0: a request answered in no time at all."""


class Distribution:
    """Counts of values >= 0 in bins that grow with the value.

    Attributes:
        count: values so far.
        total: their sum.
        least, most: the extremes, exact.
    """

    def __init__(self) -> None:
        """Start empty."""
        self.count = 0
        self.total = 0.0
        self.least, self.most = math.inf, 0.0
        self._bins: Counter[int] = Counter()

    def add(self, value: float) -> None:
        """Count one more."""
        self.count += 1
        self.total += value
        self.least, self.most = min(self.least, value), max(self.most, value)
        self._bins[math.floor(math.log(value) * STEPS_PER_E) if value > 0 else ZERO] += 1

    @property
    def mean(self) -> float | None:
        """Of all values, exact; None of none."""
        return self.total / self.count if self.count else None

    def quantile(self, share: float) -> float | None:
        """The least value that at least this share of all do not exceed; None of none."""
        needed = max(1, math.ceil(share * self.count))
        reached = 0
        for index in sorted(self._bins):
            reached += self._bins[index]
            if reached >= needed:
                return self._value(index)
        return None

    def share_within(self, limit: float) -> float | None:
        """The share of values that do not exceed `limit`; None of none."""
        num_within = sum(n for index, n in self._bins.items() if self._value(index) <= limit)
        return num_within / self.count if self.count else None

    def curve(self, num_points: int = 200) -> list[tuple[float, float]]:
        """Points (value, share of values up to it), rising: what a plot of the CDF needs."""
        points: list[tuple[float, float]] = []
        reached, drawn = 0, 0.0
        for index in sorted(self._bins):
            reached += self._bins[index]
            share = reached / self.count
            if not points or share - drawn >= 1 / num_points or reached == self.count:
                points.append((self._value(index), share))
                drawn = share
        return points

    def _value(self, index: int) -> float:
        """What stands for a bin: its middle, but nothing that lies beyond the extremes."""
        middle = 0.0 if index == ZERO else math.exp((index + 0.5) / STEPS_PER_E)
        return min(max(middle, self.least), self.most)
