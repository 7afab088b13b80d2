"""Simulations against queueing theory: a server with constant service times and Poisson arrivals.

M/D/1: with load r and service time s, requests wait r s / (2 (1 - r)) on average (Pollaczek and
Khinchine), and how many wait how long is known too (Crommelin 1932).
"""

from __future__ import annotations

import itertools
import math
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from chitu_like.cluster.cost_model import BatchShape, ModelFacts
from chitu_like.cluster.layer_placement import LayerPlacement
from chitu_like.cluster.topology import SINK, SOURCE, Cluster, Link, Node
from chitu_like.simulator.clock import VirtualClock
from chitu_like.simulator.instance import InstanceShape
from chitu_like.simulator.layer_service import simulate_layers
from chitu_like.simulator.recorder import FinishedRequest
from chitu_like.simulator.service import simulate
from chitu_like.simulator.workload import PlannedRequest


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


def check_md1(waits: list[float], load: float, service_s: float) -> None:
    assert sum(waits) / len(waits) == pytest.approx(md1_mean_wait(load, service_s), rel=0.07)
    for services in (0.0, 0.5, 1.0, 2.5, 5.0):
        share = sum(wait <= services * service_s + 1e-6 for wait in waits) / len(waits)
        expected = md1_waits_at_most(services * service_s, load, service_s)
        assert share == pytest.approx(expected, abs=0.02), services


@pytest.mark.parametrize("load", [0.2, 0.5, 0.8])
def test_waits_on_a_virtual_clock_are_those_of_md1(load: float) -> None:
    check_md1(waits_of_md1(load, 0.25, 60_000, seed=7), load, 0.25)


def poisson(rate: float, count: int, seed: int) -> Iterator[PlannedRequest]:
    """Prompts of 64 tokens with an answer of one."""
    draw, now_s = random.Random(seed), 0.0
    for index in range(count):
        now_s += draw.expovariate(rate)
        yield PlannedRequest(index=index, arrival_s=now_s, input_len=64, output_len=1)


@dataclass(frozen=True)
class Always:
    """Every batch takes as long, whatever is in it."""

    step_s: float

    def seconds(self, shape: BatchShape) -> float:
        return self.step_s if shape.num_prefill_tokens or shape.num_decodes else 0.0


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_an_instance_with_one_prompt_a_step_is_md1(load: float) -> None:
    """The real engine, scheduler and block manager."""
    service_s = 0.25
    shape = InstanceShape(
        stages=[Always(service_s)],
        num_blocks=100_000,
        max_num_batched_tokens=64,
        overlap=False,
        enable_prefix_caching=False,
    )
    done: list[FinishedRequest] = []
    simulate(poisson(load / service_s, 8000, seed=2), [shape], on_finished=done.append)
    assert len(done) == 8000
    check_md1([r.finished_s - r.arrival_s - service_s for r in done], load, service_s)


@dataclass(frozen=True)
class PromptTimes:
    """A batch takes one prompt, and each as long."""

    layer_s: float
    max_layers: int = 8

    def prompt_s(self, num_tokens: float) -> float:
        return self.layer_s if num_tokens else 0.0

    def decode_s(self, num_tokens: float) -> float:
        return 1e-9 * num_tokens

    def kv_tokens(self, num_layers: int) -> int:
        return 10_000_000

    def max_prompt_requests(self, num_layers: int) -> int:
        return 1

    def max_prompt_tokens(self, num_layers: int) -> float:
        return math.inf

    def max_decode_tokens(self, num_layers: int) -> int:
        return 64


@pytest.mark.parametrize("num_nodes", [1, 2])
def test_nodes_in_a_row_are_md1(num_nodes: int) -> None:
    """Where each takes as long, who has waited for the first waits for no other."""
    load, service_s, wire_s = 0.7, 0.25, 0.001
    names = [f"n{i}" for i in range(num_nodes)]
    stops = [SOURCE, *names, SINK]
    cluster = Cluster(
        tuple(Node(name=name, device="x", memory_bytes=1.0, disk=1e30) for name in names),
        tuple(
            Link(source=a, target=b, bandwidth=1e15, latency_s=wire_s)
            for a, b in itertools.pairwise(stops)
        ),
    )
    num_layers = 2 * num_nodes
    model = ModelFacts(name="m", num_layers=num_layers, layer_bytes=1.0, activation_bytes=1.0)
    done: list[FinishedRequest] = []
    simulate_layers(
        cluster,
        model,
        {"x": PromptTimes(service_s / 2)},
        LayerPlacement(num_layers, {n: range(2 * i, 2 * i + 2) for i, n in enumerate(names)}),
        dict.fromkeys(itertools.pairwise(stops), 1e3),
        poisson(load / service_s, 20_000, seed=4),
        mode="online",
        warmup_s=0.0,
        duration_s=1e6,
        on_finished=done.append,
    )
    assert len(done) == 20_000
    alone_s = num_nodes * service_s + (num_nodes + 1) * wire_s
    check_md1([r.finished_s - r.arrival_s - alone_s for r in done], load, service_s)


def test_littles_law_holds_in_virtual_time() -> None:
    load, service_s, count = 0.7, 0.25, 40_000
    waits = waits_of_md1(load, service_s, count, seed=3)
    seconds = count * service_s / load
    in_system = sum(wait + service_s for wait in waits) / seconds
    assert in_system == pytest.approx(load + load**2 / (2 * (1 - load)), rel=0.05)
