from __future__ import annotations

import itertools
import random
import statistics

import pytest

from chitu_like.core.errors import ConfigError
from chitu_like.simulator.arrivals import arrival_times, counted_arrivals


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


@pytest.mark.parametrize("cv", [0.5, 2.0, 4.0])
def test_gamma_gaps_have_the_mean_and_the_spread_asked_for(cv: float) -> None:
    times = arrival_times("gamma", 5.0, random.Random(7), cv=cv)
    found = gaps(list(itertools.islice(times, 50_001)))
    assert statistics.mean(found) == pytest.approx(0.2, rel=0.05)
    assert statistics.stdev(found) / statistics.mean(found) == pytest.approx(cv, rel=0.05)


def test_counted_arrivals_stay_in_their_bins() -> None:
    found = list(counted_arrivals([2, 0, 3], 10.0, random.Random(1)))
    assert found == sorted(found)
    assert [int(time // 10) for time in found] == [0, 0, 2, 2, 2]


def test_counts_are_scaled_to_a_mean_rate() -> None:
    found = list(counted_arrivals([1, 3] * 500, 2.0, random.Random(1), rate=0.7))
    assert len(found) == pytest.approx(0.7 * 2000, rel=0.03)
    num_odd = sum(int(time // 2) % 2 for time in found)
    assert num_odd / len(found) == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize(("counts", "rate"), [([-1.0], None), ([0.0, 0.0], 1.0)])
def test_counts_that_say_nothing_are_refused(counts: list[float], rate: float | None) -> None:
    with pytest.raises(ConfigError, match="nothing can come"):
        counted_arrivals(counts, 1.0, random.Random(0), rate=rate)
