from __future__ import annotations

import itertools
import random
import statistics

import pytest

from chitu_like.core.errors import ConfigError
from chitu_like.simulator.arrivals import arrival_times


def first(number: int, kind: str, rate: float | None, **more: int) -> list[float]:
    return list(itertools.islice(arrival_times(kind, rate, random.Random(7), **more), number))


def gaps(times: list[float]) -> list[float]:
    return [later - earlier for earlier, later in itertools.pairwise(times)]


def test_poisson_gaps_have_the_mean_the_spread_and_the_memory_of_an_exponential() -> None:
    rate, found = 5.0, gaps(first(20_001, "poisson", 5.0))
    assert statistics.mean(found) == pytest.approx(1 / rate, rel=0.02)
    assert statistics.stdev(found) / statistics.mean(found) == pytest.approx(1.0, abs=0.03)
    assert sum(gap > 1 / rate for gap in found) / len(found) == pytest.approx(0.3679, abs=0.01)
    assert abs(statistics.correlation(found[:-1], found[1:])) < 0.02


def test_uniform_gaps_are_all_the_same() -> None:
    assert first(5, "uniform", 4.0) == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_bursts_keep_the_rate() -> None:
    assert first(7, "burst", 2.0, burst_size=3) == [0.0, 0.0, 0.0, 1.5, 1.5, 1.5, 3.0]


def test_a_burst_without_a_rate_is_all_at_once() -> None:
    assert first(3, "burst", None) == [0.0, 0.0, 0.0]


def test_the_same_seed_gives_the_same_arrivals() -> None:
    assert first(50, "poisson", 3.0) == first(50, "poisson", 3.0)


@pytest.mark.parametrize(("kind", "rate"), [("poisson", None), ("uniform", None), ("trace", 1.0)])
def test_a_kind_that_cannot_be_drawn_is_refused(kind: str, rate: float | None) -> None:
    with pytest.raises(ConfigError, match="arrivals"):
        arrival_times(kind, rate, random.Random(0))
