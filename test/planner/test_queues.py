"""Virtual time against queueing theory: a server with constant service times and Poisson arrivals.

M/D/1: with load r and service time s, requests wait r s / (2 (1 - r)) on average (Pollaczek and
Khinchine), and how many wait how long is known too (Crommelin 1932).
"""

from __future__ import annotations

import math
import random
from collections import deque

import pytest

from chitu_like.simulator.clock import VirtualClock


def waits_of_md1(load: float, service_s: float, count: int, seed: int) -> list[float]:
    """Seconds that each of `count` requests waits for one server on a virtual clock."""
    clock, draw = VirtualClock(), random.Random(seed)
    line: deque[float] = deque()
    waits: list[float] = []
    is_busy = False

    def arrive() -> None:
        line.append(clock())
        if not is_busy:
            serve()
        if len(waits) + len(line) < count:
            clock.after(draw.expovariate(load / service_s), arrive)

    def serve() -> None:
        nonlocal is_busy
        is_busy = bool(line)
        if line:
            waits.append(clock() - line.popleft())
            clock.after(service_s, serve)

    clock.after(draw.expovariate(load / service_s), arrive)
    clock.run()
    return waits


def md1_mean_wait(load: float, service_s: float) -> float:
    return load * service_s / (2 * (1 - load))


def md1_waits_at_most(wait_s: float, load: float, service_s: float) -> float:
    """Share of requests that wait so long at most (Crommelin); stable for some twenty services."""
    rate = load / service_s
    total = 0.0
    for k in range(math.floor(wait_s / service_s) + 1):
        x = rate * (wait_s - k * service_s)
        total += (-x) ** k / math.factorial(k) * math.exp(x)
    return (1 - load) * total


@pytest.mark.parametrize("load", [0.2, 0.5, 0.8])
def test_waits_are_those_of_md1(load: float) -> None:
    waits = waits_of_md1(load, 0.25, 60_000, seed=7)
    assert sum(waits) / len(waits) == pytest.approx(md1_mean_wait(load, 0.25), rel=0.05)
    for services in (0.0, 0.5, 1.0, 2.5, 5.0):
        share = sum(wait <= services * 0.25 + 1e-9 for wait in waits) / len(waits)
        expected = md1_waits_at_most(services * 0.25, load, 0.25)
        assert share == pytest.approx(expected, abs=0.015), services


def test_littles_law_holds_in_virtual_time() -> None:
    load, service_s, count = 0.7, 0.25, 40_000
    waits = waits_of_md1(load, service_s, count, seed=3)
    seconds = count * service_s / load
    in_system = sum(wait + service_s for wait in waits) / seconds
    assert in_system == pytest.approx(load + load**2 / (2 * (1 - load)), rel=0.05)
