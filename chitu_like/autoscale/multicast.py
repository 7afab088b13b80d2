"""Which peer sends the weights to whom, and when they are there (BlitzScale, OSDI'25, section 5).

Weights go over the network from instances that serve, never from disk where that can be helped. They
flow against the KV traffic: a prefill instance sends keys and values all the time, so decode instances
and idle ones are asked first. One instance of a machine receives over all its network cards at once
(striping), its neighbours get each chunk inside the machine (broadcast); machines forward chunks to the
next (chain), which takes S/B + (n-1) chunk/B: nearly the same for one new machine as for many.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from chitu_like.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Spot:
    """Where an instance stands or could.

    Attributes:
        name: unique.
        machine: spots of one machine reach each other without the network.
        num_lanes: network cards of its devices, each used both ways at once.
    """

    name: str
    machine: str
    num_lanes: int = 1


@dataclass(frozen=True, kw_only=True)
class Source:
    """A spot that holds all weights.

    Attributes:
        spot: where.
        is_sending: its outgoing lanes carry keys and values (a prefill instance).
    """

    spot: Spot
    is_sending: bool = False


@dataclass(frozen=True, kw_only=True)
class Fabric:
    """How fast bytes move.

    Attributes:
        lane: bytes a second of a network card, each way.
        local: between spots of a machine.
        host: from a machine's memory or disk to all its spots, where it has the weights.
        latency_s: of each chunk between machines.
        chunk_bytes: forwarded as a whole.
    """

    lane: float
    local: float
    host: float
    latency_s: float = 0.0
    chunk_bytes: float = 64e6

    def __post_init__(self) -> None:
        for name in ("lane", "local", "host", "chunk_bytes"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ConfigError(f"fabric: {name}={value}: give a finite number above 0")


class Way(Enum):
    """How weights reach a spot."""

    LOCAL = "local"  # from a spot of the same machine
    CHAIN = "chain"  # from the machine before it, over all lanes
    HOST = "host"  # from the machine's own memory or disk


@dataclass(frozen=True, kw_only=True)
class Hop:
    """One transfer of all weights.

    Attributes:
        source: a spot's name; a machine's for HOST.
        target: a spot's name.
        way: how.
        num_lanes: used side by side; 1 but for CHAIN.
        first_s: until the first chunk is there, counted from the start of the plan.
        ready_s: until all are; chunks come at an even pace between the two.
    """

    source: str
    target: str
    way: Way
    num_lanes: int
    first_s: float
    ready_s: float

    def share_ready(self, elapsed_s: float) -> float:
        """Share of the weights that are there after so long; only grows."""
        if elapsed_s >= self.ready_s:
            return 1.0
        span = self.ready_s - self.first_s
        return max(0.0, (elapsed_s - self.first_s) / span) if span > 0 else 0.0


@dataclass(frozen=True)
class _Pipe:
    """Seconds of a chunk on each hop so far: the sum and the slowest."""

    sum_s: float = 0.0
    slowest_s: float = 0.0

    def then(self, chunk_s: float) -> _Pipe:
        return _Pipe(self.sum_s + chunk_s, max(self.slowest_s, chunk_s))


def plan(
    num_bytes: float, sources: Sequence[Source], targets: Sequence[Spot], fabric: Fabric
) -> list[Hop]:
    """Who sends to whom, each target once, senders before those they feed.

    Chains start at sources whose lanes out are free, one each, and share the machines among them so
    that all end alike. Machines with more lanes come first: a slow one delays only those behind it.

    Args:
        num_bytes: of the weights of an instance.
        sources: none: every machine loads from its host.
        targets: spots to fill, none of them a source.
        fabric: how fast.
    """
    num_chunks = max(1, math.ceil(num_bytes / fabric.chunk_bytes))
    planner = _Planner(num_bytes / num_chunks, num_chunks, fabric)
    machines: dict[str, list[Spot]] = {}
    for target in targets:
        machines.setdefault(target.machine, []).append(target)
    hops: list[Hop] = []
    for machine in list(machines):
        here = [source.spot for source in sources if source.spot.machine == machine]
        if here:
            hops += planner.broadcast(here[0], machines.pop(machine), _Pipe())
        elif not sources:
            hops += planner.from_host(machine, machines.pop(machine))
    fastest_first = sorted(machines.values(), key=lambda spots: -_head(spots).num_lanes)
    for source, chain in _deal(choose_sources(sources), fastest_first):
        hops += planner.chain(source, chain)
    return hops


def choose_sources(sources: Sequence[Source]) -> list[Source]:
    """Those that send nothing, most lanes first; where all send, all the same."""
    free = [source for source in sources if not source.is_sending] or list(sources)
    return sorted(free, key=lambda source: -source.spot.num_lanes)


def _deal(
    sources: Sequence[Source], machines: list[list[Spot]]
) -> list[tuple[Source, list[list[Spot]]]]:
    """A chain of machines for each source, of lengths as even as can be; one source a machine."""
    senders: dict[str, Source] = {}
    for source in sources:
        senders.setdefault(source.spot.machine, source)
    starts = list(senders.values())[: len(machines)]
    return [(start, machines[i :: len(starts)]) for i, start in enumerate(starts)]


def _head(spots: Sequence[Spot]) -> Spot:
    """The spot of a machine that receives for all."""
    return max(spots, key=lambda spot: spot.num_lanes)


@dataclass(frozen=True)
class _Planner:
    chunk_bytes: float
    num_chunks: int
    fabric: Fabric

    def chain(self, source: Source, machines: list[list[Spot]]) -> list[Hop]:
        """From machine to machine; a source that sends keys and values has half its lanes' rate."""
        hops: list[Hop] = []
        sender, pipe = source.spot, _Pipe()
        for spots in machines:
            head = _head(spots)
            num_lanes = min(sender.num_lanes, head.num_lanes)
            rate = num_lanes * self.fabric.lane
            if source.is_sending and sender is source.spot:
                rate /= 2
            pipe = pipe.then(self.chunk_bytes / rate + self.fabric.latency_s)
            hops.append(self._hop(sender.name, head, Way.CHAIN, num_lanes, pipe))
            hops += self.broadcast(head, [spot for spot in spots if spot is not head], pipe)
            sender = head
        return hops

    def broadcast(self, source: Spot, targets: list[Spot], pipe: _Pipe) -> list[Hop]:
        """To all spots of a machine at once, chunk by chunk as they come."""
        pipe = pipe.then(self.chunk_bytes / self.fabric.local)
        return [self._hop(source.name, target, Way.LOCAL, 1, pipe) for target in targets]

    def from_host(self, machine: str, targets: list[Spot]) -> list[Hop]:
        """Read once, given to all spots."""
        pipe = _Pipe().then(self.chunk_bytes / self.fabric.host)
        return [self._hop(machine, target, Way.HOST, 1, pipe) for target in targets]

    def _hop(self, source: str, target: Spot, way: Way, num_lanes: int, pipe: _Pipe) -> Hop:
        """Equal chunks through stages of a pipeline: the sum once, the slowest for every other one."""
        return Hop(
            source=source,
            target=target.name,
            way=way,
            num_lanes=num_lanes,
            first_s=pipe.sum_s,
            ready_s=pipe.sum_s + (self.num_chunks - 1) * pipe.slowest_s,
        )


def point_to_point_s(num_bytes: float, num_targets: int, fabric: Fabric) -> float:
    """What one source needs that sends to every target on its own, over one lane: to compare with."""
    return fabric.latency_s + num_targets * num_bytes / fabric.lane
