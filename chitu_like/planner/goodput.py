"""Goodput: the highest rate of requests at which enough of them are served as promised.

Attainment falls as the rate grows, since a busier system answers later; so the rate is found by
bisection (Zhong et al., DistServe, OSDI 2024, section 4).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

Attainment: TypeAlias = Callable[[float], float]
"""Requests/s -> share of requests that are good; the smaller one where there are two promises."""

LOWEST, HIGHEST = 2.0**-16, 2.0**20
"""Rates between which is searched, requests/s: one in eighteen hours, a million in a second."""


def goodput(
    attainment: Attainment, *, target: float, precision: float, start: float = 1.0
) -> float:
    """Find the highest rate that attains the target.

    A bracket is found by doubling or halving, then cut at its geometric mean, since rates matter by
    their ratios. What is returned was simulated and attained the target.

    Args:
        attainment: a seeded simulation; it should fall, or noise decides within its own width.
        target: share of good requests that is enough.
        precision: relative width at which the search ends.
        start: the first rate tried.

    Returns: requests/s; 0 where even LOWEST does not attain it, HIGHEST where that still does.
    """
    low, high = _bracket(attainment, target, min(max(start, LOWEST), HIGHEST))
    if low == 0.0 or math.isinf(high):
        return low
    while high > low * (1 + precision):
        middle = math.sqrt(low * high)
        if attainment(middle) >= target:
            low = middle
        else:
            high = middle
    return low


def _bracket(attainment: Attainment, target: float, start: float) -> tuple[float, float]:
    """(a rate that attains or 0, a higher one that does not or inf)."""
    rate = start
    if attainment(rate) >= target:
        while rate < HIGHEST:
            low, rate = rate, min(rate * 2, HIGHEST)
            if attainment(rate) < target:
                return low, rate
        return rate, math.inf
    while rate > LOWEST:
        high, rate = rate, max(rate / 2, LOWEST)
        if attainment(rate) >= target:
            return rate, high
    return 0.0, rate
