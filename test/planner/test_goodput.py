from __future__ import annotations

import math

import pytest

from chitu_like.planner.goodput import HIGHEST, LOWEST, goodput


@pytest.mark.parametrize("limit", [3e-4, 0.01, 0.5, 0.999, 1.0, 1.7, 64.0, 12_345.6])
@pytest.mark.parametrize("start", [1e-3, 1.0, 300.0])
def test_the_limit_is_found_from_below_within_the_precision(limit: float, start: float) -> None:
    found = goodput(lambda rate: float(rate <= limit), target=0.9, precision=0.01, start=start)
    assert limit / 1.01 <= found <= limit


def test_the_share_asked_for_decides() -> None:
    """A queue whose waiting time is exponential, as in M/M/1: P(T > t) = exp(-(mu - rate) t)."""
    service_rate, promise_s = 10.0, 1.0

    def attainment(rate: float) -> float:
        return 1 - math.exp(-max(service_rate - rate, 0.0) * promise_s)

    for target in (0.5, 0.9, 0.99):
        exact = service_rate + math.log(1 - target) / promise_s
        found = goodput(attainment, target=target, precision=1e-4)
        assert found == pytest.approx(exact, rel=1e-4)


def test_what_never_attains_has_none_and_what_always_does_stops_at_the_highest_rate() -> None:
    rates: list[float] = []

    def never(rate: float) -> float:
        rates.append(rate)
        return 0.0

    assert goodput(never, target=0.9, precision=0.1) == 0.0
    assert min(rates) == LOWEST
    assert goodput(lambda rate: 1.0, target=0.9, precision=0.1) == HIGHEST


def test_a_rate_that_is_returned_was_simulated_and_attained() -> None:
    seen: dict[float, float] = {}

    def attainment(rate: float) -> float:
        seen[rate] = 1.0 if rate < 5 else 0.3
        return seen[rate]

    assert seen[goodput(attainment, target=0.9, precision=0.05)] == 1.0
