"""Clusters small enough that every placement and every route can be written down."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass

from planner.straight_times import StraightTimes

from chitu_like.cluster.cost_model import ModelFacts
from chitu_like.cluster.topology import SINK, SOURCE, Cluster, Link, Node
from chitu_like.planner.throughput import NodeThroughput, TypicalLoad


@dataclass(frozen=True, kw_only=True)
class Toy:
    """A cluster, a model, and how fast each device is.

    Attributes:
        speed: (device, layers it holds) -> tokens a second; what is absent does not fit.
    """

    cluster: Cluster
    model: ModelFacts
    speed: Mapping[tuple[str, int], float]

    @property
    def throughput(self) -> NodeThroughput:
        """The speeds as the planner has them."""
        devices = {device for device, _ in self.speed}
        most = {d: max(k for device, k in self.speed if device == d) for d in devices}
        return NodeThroughput(
            model=self.model,
            load=TypicalLoad(),
            layer_times={d: StraightTimes(kv=1 << 40, max_layers=most[d]) for d in sorted(devices)},
            tokens_per_s={
                d: tuple(self.speed[d, k] for k in range(1, most[d] + 1)) for d in sorted(devices)
            },
        )

    def node_speed(self, name: str, num_layers: int) -> float | None:
        return self.speed.get((self.cluster.by_name[name].device, num_layers))


def toy(seed: int, *, num_nodes: int, num_layers: int, max_layers: int | None = None) -> Toy:
    """Draw devices, links and NICs so that each of them is sometimes what binds."""
    draw = random.Random(seed)
    devices = ["fast", "middle", "slow"][: draw.choice([1, 2, 3])]
    most = {device: draw.randint(2, max_layers or num_layers) for device in devices}
    alone = {device: draw.choice([6.0, 10.0, 14.5, 30.0]) for device in devices}
    speed = {
        (device, k): alone[device] / (k + draw.choice([0.0, 0.3]))
        for device in devices
        for k in range(1, min(most[device], num_layers) + 1)
    }
    model = ModelFacts(
        name="toy", num_layers=num_layers, layer_bytes=1.0, activation_bytes=9.0, token_bytes=1.0
    )
    nodes = tuple(
        Node(
            name=f"n{i}",
            device=draw.choice(devices),
            memory_bytes=100.0,
            nic_in=draw.choice([math.inf, 120.0, 60.0, 45.0]),
            nic_out=draw.choice([math.inf, 120.0, 60.0, 45.0]),
        )
        for i in range(num_nodes)
    )
    return Toy(cluster=Cluster(nodes, _links(nodes, draw)), model=model, speed=speed)


def _links(nodes: tuple[Node, ...], draw: random.Random) -> tuple[Link, ...]:
    present = draw.choice([1.0, 0.8, 0.6])
    ends = [(a.name, b.name) for a in nodes for b in nodes if a is not b]
    inner = [
        Link(source=a, target=b, bandwidth=draw.choice([15.0, 50.0, 400.0]))
        for a, b in ends
        if draw.random() < present
    ]
    # The first node is always reached from outside, and the last always leads there.
    outer = [
        Link(source=SOURCE, target=node.name, bandwidth=draw.choice([4.0, 40.0, 40.0, 40.0]))
        for i, node in enumerate(nodes)
        if i == 0 or draw.random() < 0.7
    ] + [
        Link(source=node.name, target=SINK, bandwidth=draw.choice([4.0, 40.0, 40.0, 40.0]))
        for i, node in enumerate(nodes)
        if i == len(nodes) - 1 or draw.random() < 0.7
    ]
    return (*inner, *outer)
