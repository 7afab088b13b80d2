"""How long prompts and answers are, where no trace says it: distributions over numbers of tokens."""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol


class Lengths(Protocol):
    """A distribution over numbers of tokens."""

    @property
    def mean(self) -> float:
        """Of what is drawn, in tokens, up to rounding."""
        ...

    def draw(self, rng: random.Random) -> int:
        """A number of tokens, at least 1."""
        ...


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """Every number from `low` to `high`, both included, is as likely as another."""

    low: int
    high: int

    @property
    def mean(self) -> float:
        """The middle."""
        return (self.low + self.high) / 2

    def draw(self, rng: random.Random) -> int:
        """A number of tokens."""
        return rng.randint(self.low, self.high)


@dataclass(frozen=True, kw_only=True)
class Lognormal:
    """Logarithms are normally distributed; what falls outside of [low, high] is moved to its end.

    Attributes:
        median: tokens.
        sigma: standard deviation of the natural logarithm.
        low, high: tokens.
    """

    median: float
    sigma: float
    low: int
    high: int

    @property
    def mean(self) -> float:
        """Of the clipped distribution: the partial expectation between the ends, and the ends."""
        if self.sigma == 0:
            return min(max(self.median, self.low), self.high)
        below, above = self._place(self.low), self._place(self.high)
        inside = self.median * math.exp(self.sigma**2 / 2)
        inside *= _normal_cdf(above - self.sigma) - _normal_cdf(below - self.sigma)
        return self.low * _normal_cdf(below) + inside + self.high * (1 - _normal_cdf(above))

    def draw(self, rng: random.Random) -> int:
        """A number of tokens."""
        tokens = self.median * math.exp(rng.gauss(0.0, self.sigma))
        return min(max(round(tokens), self.low), self.high)

    def _place(self, tokens: float) -> float:
        """Standard deviations above the median."""
        return math.log(tokens / self.median) / self.sigma


@dataclass(frozen=True)
class Quantiles:
    """Straight lines through points of a distribution function.

    Args:
        points: (share of requests that are at most so long, tokens); both rise, the first share is 0
            and the last 1.
    """

    points: Sequence[tuple[float, float]]

    @property
    def mean(self) -> float:
        """Area under the lines."""
        return sum((q - p) * (a + b) / 2 for (p, a), (q, b) in pairwise(self.points))

    def draw(self, rng: random.Random) -> int:
        """A number of tokens."""
        share = rng.random()
        index = bisect_right(self.points, share, key=lambda point: point[0])
        (p, a), (q, b) = self.points[index - 1], self.points[index]
        return max(1, round(a + (b - a) * (share - p) / (q - p)))


def _normal_cdf(x: float) -> float:
    return (1 + math.erf(x / math.sqrt(2))) / 2
