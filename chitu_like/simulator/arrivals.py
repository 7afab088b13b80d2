"""When requests come: Poisson, in clumps, evenly spaced, in bursts, or as they were counted."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence

from chitu_like.core.errors import ConfigError

KINDS = ("poisson", "gamma", "uniform", "burst")


def arrival_times(
    kind: str,
    rate: float | None,
    rng: random.Random,
    *,
    burst_size: int | None = None,
    cv: float = 1.0,
) -> Iterator[float]:
    """Seconds after the start at which requests come, without end, never falling.

    Args:
        kind: poisson: gaps are exponentially distributed, requests know nothing of each other;
            gamma: gaps of that distribution, whose spread `cv` says; uniform: all gaps are 1 / rate;
            burst: burst_size requests at once, then a pause that keeps the rate.
        rate: requests/s on average; None with burst: all of them at once.
        rng: draws the gaps.
        burst_size: requests of a burst; None: 1.
        cv: standard deviation of gamma's gaps over their mean: 1 is Poisson, more comes in clumps.

    Raises: ConfigError for an unknown kind, a rate that is needed and not given, or no spread.
    """
    if kind not in KINDS:
        raise ConfigError(f"arrivals {kind}: use {', '.join(KINDS)} or trace")
    if rate is None:
        if kind != "burst":
            raise ConfigError(f"arrivals {kind} need a rate, in requests/s")
        return itertools.repeat(0.0)
    if not rate > 0:
        raise ConfigError(f"arrivals {kind} at rate {rate}: give more than 0 requests/s")
    if kind == "poisson":
        return itertools.accumulate(rng.expovariate(rate) for _ in itertools.count())
    if kind == "gamma":
        if not cv > 0:
            raise ConfigError(f"arrivals gamma with cv {cv}: give more than 0, 1 is Poisson")
        shape = 1 / cv**2
        return itertools.accumulate(
            rng.gammavariate(shape, 1 / rate / shape) for _ in itertools.count()
        )
    size = 1 if kind == "uniform" or burst_size is None else burst_size
    return (number // size * size / rate for number in itertools.count())


def counted_arrivals(
    counts: Sequence[float], bin_s: float, rng: random.Random, *, rate: float | None = None
) -> Iterator[float]:
    """Arrivals of which only the number in each bin is known; inside a bin they are uniform.

    Args:
        counts: arrivals in each bin of `bin_s` seconds.
        bin_s: length of a bin.
        rng: draws the places inside the bins, and rounds counts that scaling left broken.
        rate: mean requests/s that the counts are scaled to; None: as they are.

    Raises: ConfigError where there is nothing to scale.
    """
    total = sum(counts)
    if not bin_s > 0 or any(count < 0 for count in counts) or (rate is not None and not total):
        raise ConfigError(f"{total} arrivals in {len(counts)} bins of {bin_s} s: nothing can come")
    scale = 1.0 if rate is None else rate * bin_s * len(counts) / total
    return _in_bins([count * scale for count in counts], bin_s, rng)


def _in_bins(counts: Sequence[float], bin_s: float, rng: random.Random) -> Iterator[float]:
    for index, count in enumerate(counts):
        whole = int(count)
        number = whole + (rng.random() < count - whole)  # right on average
        yield from sorted((index + rng.random()) * bin_s for _ in range(number))
