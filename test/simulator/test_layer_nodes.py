"""Nodes and wires: times added up by hand, first come first served, limits of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from layer_cluster import StraightTimes

from chitu_like.router.flow_edges import Route
from chitu_like.simulator.clock import VirtualClock
from chitu_like.simulator.layer_nodes import COPY_S_PER_BYTE, LayerNode
from chitu_like.simulator.layer_wires import Passage, Wire


class Collector:
    """Notes who arrives when."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.arrived: list[tuple[int, float]] = []

    def add(self, passage: Passage) -> None:
        self.arrived.append((passage.index, self.clock.now_s))

    def extend(self, passage: Passage) -> None:
        raise AssertionError(passage)

    def release(self, num_tokens: int) -> None:
        pass


class World:
    """One node with a collector behind it; what is sent enters at a layer after no time."""

    def __init__(self, times: StraightTimes, layers: range, entries: Sequence[int]) -> None:
        self.clock = VirtualClock()
        self.end = Collector(self.clock)
        self.node = LayerNode(self.clock, "a", layers, times, dict.fromkeys(entries, 0.0))
        self.out = self.wire(self.end)

    def wire(self, target: object) -> Wire:
        return Wire(
            self.clock,
            target,  # type: ignore[arg-type]
            latency_s=0.0,
            bandwidth=1.0,
            token_bytes=0.0,
        )

    def passage(self, index: int, num_tokens: int, entry: int) -> Passage:
        """A prompt of so many tokens; 0: a decode."""
        wires = [self.wire(self.node.queues[entry]), self.out]
        passage = Passage(
            self.end,
            index,
            Route(num_tokens),
            wires,
            num_input=num_tokens or 1,
            max_output=9,
            born_s=0.0,
        )
        passage.is_prompt = num_tokens > 0
        return passage

    def send(self, index: int, time_s: float, num_tokens: int = 0, entry: int = 0) -> None:
        passage = self.passage(index, num_tokens, entry)
        self.clock.at(time_s, lambda: passage.wires[0].send(passage))

    def run(self) -> list[tuple[int, float]]:
        self.clock.run()
        return self.end.arrived


def test_a_batch_costs_its_prompts_and_its_decodes_in_each_layer() -> None:
    world = World(StraightTimes(), range(0, 4), [0])
    world.send(0, 0.0, num_tokens=64)  # alone: 4 x 64 / 64 = 4 s, the others wait for it
    world.send(1, 1.0, num_tokens=32)
    world.send(2, 1.0)
    world.send(3, 1.0)
    both = 4 * (32 / 64 + 1 / 8 + 2 / 32)
    # Decodes leave first: they are short, and what they wait for is another decode.
    assert world.run() == [(0, 4.0), (2, 4 + both), (3, 4 + both), (1, 4 + both)]
    assert world.node.num_batches == 2
    assert world.node.busy_s == 4 + both


def test_a_lone_decode_costs_twice() -> None:
    world = World(StraightTimes(), range(0, 4), [0])
    world.send(0, 0.0)
    assert world.run() == [(0, 2 * 4 * (1 / 8 + 1 / 32))]


def test_arrivals_are_copied_before_they_are_computed() -> None:
    clock = VirtualClock()
    end = Collector(clock)
    node = LayerNode(clock, "a", range(2), StraightTimes(), {0: 1e6})
    wires = [
        Wire(clock, target, latency_s=0.0, bandwidth=1.0, token_bytes=0.0)
        for target in (node.queues[0], end)
    ]
    wires[0].send(Passage(end, 0, Route(64), wires, num_input=64, max_output=1, born_s=0.0))
    clock.run()
    assert end.arrived == [(0, pytest.approx(2.0 + 64e6 / 4e9 + 64e6 / 5e9))]
    assert pytest.approx(1 / 4e9 + 1 / 5e9) == COPY_S_PER_BYTE


def test_batches_are_filled_up_to_their_limits_first_come_first_served() -> None:
    world = World(StraightTimes(num_prompts=2, num_decodes=3), range(0, 1), [0])
    world.send(0, 0.0, num_tokens=64)  # 1 s in which all others come
    for index in range(1, 6):
        world.send(index, index / 16, num_tokens=64)
    for index in range(6, 14):
        world.send(index, index / 16)
    batches: dict[float, list[int]] = {}
    for index, time_s in world.run():
        batches.setdefault(time_s, []).append(index)
    assert list(batches.values()) == [[0], [6, 7, 8, 1, 2], [9, 10, 11, 3, 4], [12, 13, 5]]


def test_prompts_of_a_batch_have_a_limit_of_tokens_together() -> None:
    world = World(StraightTimes(num_prompt_tokens=128), range(0, 1), [0])
    world.send(0, 0.0, num_tokens=64)  # 1 s in which all others come
    for index, num_tokens in enumerate((64, 64, 1, 200, 1), start=1):
        world.send(index, index / 16, num_tokens=num_tokens)
    batches: dict[float, list[int]] = {}
    for index, time_s in world.run():
        batches.setdefault(time_s, []).append(index)
    assert list(batches.values()) == [[0], [1, 2], [3], [4], [5]]


def test_those_who_enter_further_up_join_the_batch_as_it_passes() -> None:
    world = World(StraightTimes(), range(0, 4), [0, 3])
    world.send(0, 0.0, num_tokens=64)  # at layer 3 after 3 s
    world.send(1, 1.0, num_tokens=64, entry=3)
    assert world.run() == [(0, 3.0 + 2.0), (1, 3.0 + 2.0)]
    assert world.node.num_batches == 1
    assert world.node.kv_used == 64 * 4 + 64 * 1


def test_a_batch_begins_where_somebody_waits_longest() -> None:
    world = World(StraightTimes(num_prompts=1), range(0, 4), [0, 3])
    world.send(0, 0.0, num_tokens=64)
    world.send(1, 1.0, num_tokens=64, entry=3)  # finds no place in that batch
    world.send(2, 2.0, num_tokens=64)
    assert world.run() == [(0, 4.0), (1, 5.0), (2, 9.0)]


def test_queue_lengths_tell_who_waits() -> None:
    world = World(StraightTimes(), range(0, 4), [0, 2])
    world.send(0, 0.0, num_tokens=64)
    world.send(1, 1.0, num_tokens=30)
    world.send(2, 1.0, num_tokens=20, entry=2)
    world.send(3, 1.0)
    world.clock.run(1.5)
    node = world.node
    assert (node.num_waiting, node.num_waiting_tokens) == (3, 51)
    assert node.busy_s == 1.5


@pytest.mark.parametrize(("holds_latency", "last_s"), [(True, 2.5), (False, 2.25)])
def test_a_wire_carries_one_message_at_a_time(holds_latency: bool, last_s: float) -> None:
    clock = VirtualClock()
    end = Collector(clock)
    wire = Wire(
        clock,
        end,
        latency_s=0.25,
        bandwidth=16.0,
        token_bytes=2.0,
        holds_latency=holds_latency,
    )
    for index, num_tokens in enumerate((8, 8)):
        wire.send(
            Passage(end, index, Route(1), [wire], num_input=num_tokens, max_output=1, born_s=0.0)
        )
    clock.run(1.0)
    assert wire.busy_s == 1.0
    clock.run(9.0)
    assert end.arrived == [(0, 1.25), (1, last_s)]
    assert wire.busy_s == (2.5 if holds_latency else 2.0)
    assert wire.num_bytes == 32
