"""What there is to place a model on: machines and the links between them.

Units everywhere: seconds, bytes, bytes a second.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from chitu_like.core.errors import ConfigError

_Name = TypeVar("_Name", bound=Hashable)

SOURCE, SINK = "source", "sink"
"""Ends of links to and from the coordinator, where requests come in and tokens go out."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A machine that computes as one: one device, or several that share every layer.

    Attributes:
        name: unique in the cluster.
        device: its type, which a profile has times for, e.g. "A100" or "T4x2".
        memory_bytes: of its devices together.
        nic_in, nic_out: bytes a second; inf where nobody said.
        disk: bytes a second that a model loads at; inf likewise.
        region: where it stands; "" where that does not matter.
    """

    name: str
    device: str
    memory_bytes: float
    nic_in: float = math.inf
    nic_out: float = math.inf
    disk: float = math.inf
    region: str = ""


@dataclass(frozen=True, kw_only=True)
class Link:
    """One direction between two nodes, or a node and the coordinator.

    Attributes:
        source: name of a node, or SOURCE.
        target: name of a node, or SINK.
        bandwidth: bytes a second.
        latency_s: of each message.
    """

    source: str
    target: str
    bandwidth: float
    latency_s: float = 0.0

    def seconds(self, num_bytes: float) -> float:
        """From the first byte that leaves to the last that arrives, on an idle link."""
        return self.latency_s + num_bytes / self.bandwidth


@dataclass(frozen=True)
class Cluster:
    """Nodes and links.

    Args:
        nodes: at least one.
        links: at most one for each ordered pair.

    Raises: ConfigError for names that are taken twice, ends that do not exist, figures that make no
        sense.
    """

    nodes: tuple[Node, ...]
    links: tuple[Link, ...]

    def __post_init__(self) -> None:
        names = [node.name for node in self.nodes]
        if not names:
            raise ConfigError("a cluster has at least one node")
        for name in (*_twice(names), *({SOURCE, SINK} & set(names))):
            raise ConfigError(f"node {name}: the name is taken")
        for node in self.nodes:
            rates = {"nic_in": node.nic_in, "nic_out": node.nic_out, "disk": node.disk}
            for key, value in {"memory_bytes": node.memory_bytes, **rates}.items():
                if not value > 0:
                    raise ConfigError(f"node {node.name}: {key}={value}: give more than 0")
        ends = [(link.source, link.target) for link in self.links]
        for source, target in _twice(ends):
            raise ConfigError(f"link {source} -> {target} is there twice")
        for link in self.links:
            where = f"link {link.source} -> {link.target}"
            for end, coordinator in ((link.source, SOURCE), (link.target, SINK)):
                if end != coordinator and end not in self.by_name:
                    raise ConfigError(f"{where}: there is no node {end}")
            if link.source == link.target or (link.source, link.target) == (SOURCE, SINK):
                raise ConfigError(f"{where}: a link connects two nodes, or one and the coordinator")
            if not 0 < link.bandwidth < math.inf or not 0 <= link.latency_s < math.inf:
                raise ConfigError(
                    f"{where}: bandwidth={link.bandwidth}, latency_s={link.latency_s}: give finite "
                    "numbers, a bandwidth above 0"
                )

    @cached_property
    def by_name(self) -> Mapping[str, Node]:
        """Nodes by name."""
        return {node.name: node for node in self.nodes}

    @cached_property
    def link_between(self) -> Mapping[tuple[str, str], Link]:
        """Links by (source, target)."""
        return {(link.source, link.target): link for link in self.links}


def _twice(names: Iterable[_Name]) -> list[_Name]:
    return [name for name, count in Counter(names).items() if count > 1]
