"""When requests come: Poisson, evenly spaced, in bursts."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from chitu_like.core.errors import ConfigError

KINDS = ("poisson", "uniform", "burst")


def arrival_times(
    kind: str, rate: float | None, rng: random.Random, *, burst_size: int | None = None
) -> Iterator[float]:
    """Seconds after the start at which requests come, without end, never falling.

    Args:
        kind: poisson: gaps are exponentially distributed, requests know nothing of each other;
            uniform: all gaps are 1 / rate; burst: burst_size requests at once, then a pause that
            keeps the rate.
        rate: requests/s on average; None with burst: all of them at once.
        rng: draws the gaps.
        burst_size: requests of a burst; None: 1.

    Raises: ConfigError for an unknown kind, or where a rate is needed and not given.
    """
    if kind not in KINDS:
        raise ConfigError(f"--arrival {kind}: use {', '.join(KINDS)} or trace")
    if rate is None:
        if kind != "burst":
            raise ConfigError(f"--arrival {kind} needs --rate, in requests/s")
        return itertools.repeat(0.0)
    if kind == "poisson":
        return itertools.accumulate(rng.expovariate(rate) for _ in itertools.count())
    size = 1 if kind == "uniform" or burst_size is None else burst_size
    return (number // size * size / rate for number in itertools.count())
