"""Clusters that nobody owns yet, to plan for: one region, or several with slow links between them.

Everything is drawn from one seeded generator: the same arguments make the same cluster, bit for bit.
Links are made in pairs, one for each direction, with the same figures.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import combinations, count
from typing import TypeAlias, TypeVar

import numpy as np

from chitu_like.cluster.topology import SINK, SOURCE, Cluster, Link, Node
from chitu_like.core.errors import ConfigError

_T = TypeVar("_T")
Pair: TypeAlias = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class LinkSpeed:
    """How fast links of one kind are: uniform around a mean.

    Attributes:
        bandwidth: mean, bytes a second.
        latency_s: mean of a message.
        bandwidth_spread: half the width of the interval, less than the mean.
        latency_spread_s: likewise, at most the mean.
    """

    bandwidth: float
    latency_s: float
    bandwidth_spread: float = 0.0
    latency_spread_s: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.bandwidth_spread < self.bandwidth:
            raise ConfigError(
                f"bandwidth_spread={self.bandwidth_spread}: give 0 to less than the mean, "
                f"{self.bandwidth}"
            )
        if not 0 <= self.latency_spread_s <= self.latency_s:
            raise ConfigError(
                f"latency_spread_s={self.latency_spread_s}: give 0 to the mean, {self.latency_s}"
            )

    def both_ways(self, ends: Pair, draw: np.random.Generator) -> Iterator[Link]:
        """The links of a pair; only one where an end is the coordinator."""
        bandwidth = self.bandwidth + self.bandwidth_spread * float(draw.uniform(-1, 1))
        latency_s = self.latency_s + self.latency_spread_s * float(draw.uniform(-1, 1))
        for source, target in (ends, ends[::-1]):
            if source != SINK and target != SOURCE:
                yield Link(source=source, target=target, bandwidth=bandwidth, latency_s=latency_s)


def numbered(number: int, node: Node) -> list[Node]:
    """That many nodes like this one, named after it: A100-0, A100-1 ..."""
    return [replace(node, name=f"{node.name}-{index}") for index in range(number)]


def single_region(
    nodes: Sequence[Node],
    speed: LinkSpeed,
    *,
    degree: int | None = None,
    source_degree: int | None = None,
    sink_degree: int | None = None,
    slow_links: LinkSpeed | None = None,
    seed: int = 0,
) -> Cluster:
    """Nodes that stand side by side.

    Args:
        nodes: the mix, e.g. from `numbered`.
        speed: of the links.
        degree: neighbours of a node on average; None: all others. At least what connects all nodes.
        source_degree: nodes that the coordinator reaches; None: all.
        sink_degree: nodes that reach the coordinator; None: all.
        slow_links: of every pair that has no link otherwise; None: there is none.
        seed: what draws depend on.

    Raises: ConfigError for degrees that cannot be.
    """
    draw = np.random.default_rng(seed)
    names = [node.name for node in nodes]
    _check_degrees(len(names), degree, source_degree, sink_degree)
    pairs = list(combinations(names, 2))
    fast = set(pairs) if degree is None else _connected(names, pairs, degree, draw)
    entries, exits = [(SOURCE, name) for name in names], [(name, SINK) for name in names]
    for some, number in ((entries, source_degree), (exits, sink_degree)):
        fast |= set(_some(some, len(names) if number is None else number, draw))
    links: list[Link] = []
    for ends in (*entries, *pairs, *exits):
        kind = speed if ends in fast else slow_links
        if kind is not None:
            links += kind.both_ways(ends, draw)
    return Cluster(tuple(nodes), _in_order(links, names))


def partitioned(
    regions: Mapping[str, Sequence[Node]],
    *,
    inner: LinkSpeed,
    cross: LinkSpeed,
    coordinator: LinkSpeed | None = None,
    seed: int = 0,
) -> Cluster:
    """Regions, each fully connected inside, and slower links between nodes of different ones.

    Args:
        regions: name -> its nodes; their own `region` is overwritten.
        inner: links inside a region.
        cross: links between two of them.
        coordinator: links to and from it, for every node; None: like `cross`.
        seed: what draws depend on.
    """
    draw = np.random.default_rng(seed)
    nodes = [replace(node, region=name) for name, members in regions.items() for node in members]
    links: list[Link] = []
    for a, b in combinations(nodes, 2):
        kind = inner if a.region == b.region else cross
        links += kind.both_ways((a.name, b.name), draw)
    for node in nodes:
        for ends in ((SOURCE, node.name), (node.name, SINK)):
            links += (coordinator or cross).both_ways(ends, draw)
    return Cluster(tuple(nodes), _in_order(links, [node.name for node in nodes]))


def prune(cluster: Cluster, keep: int, *, seed: int = 0) -> Cluster:
    """Leave out slow links, so that a search has less to look at.

    Of the links out of each node to others, out of the source and into the sink the `keep` fastest
    stay. So do those of the widest tree from the source and of the widest one to the sink: whoever could
    be reached, and reach the sink, still can, over a path with as much bandwidth as before.

    Args:
        cluster: not modified.
        keep: at least 0.
        seed: breaks ties, which would otherwise all favour the first nodes.
    """
    if keep < 0:
        raise ConfigError(f"keep={keep}: give 0 or more links of each node")
    order = np.random.default_rng(seed).permutation(len(cluster.links))
    groups: dict[Pair, list[Link]] = {}
    for link in (cluster.links[int(index)] for index in order):
        group = ("", SINK) if link.target == SINK else (link.source, "")
        groups.setdefault(group, []).append(link)
    kept = {
        (link.source, link.target)
        for links in groups.values()
        for link in sorted(links, key=lambda link: -link.bandwidth)[:keep]
    }
    kept |= _widest_tree(cluster.links, SOURCE, lambda link: (link.source, link.target), kept)
    kept |= _widest_tree(cluster.links, SINK, lambda link: (link.target, link.source), kept)
    stay = tuple(link for link in cluster.links if (link.source, link.target) in kept)
    return Cluster(cluster.nodes, stay)


def _widest_tree(
    links: Iterable[Link], root: str, ends: Callable[[Link], Pair], kept: Set[Pair]
) -> set[Pair]:
    """Prim's tree of the widest links: its path to each node is one of the widest there are.

    Args:
        links: of the cluster.
        root: where the tree begins.
        ends: (the end nearer to the root, the other) of a link.
        kept: links that stay anyway, so they are taken among equal ones.
    """
    leaving: dict[str, list[Link]] = {}
    for link in links:
        leaving.setdefault(ends(link)[0], []).append(link)
    tree: set[Pair] = set()
    reached: set[str] = set()
    tie = count()  # links do not compare
    heap: list[tuple[float, bool, int, Link | None, str]] = [(0.0, False, next(tie), None, root)]
    while heap:
        *_, way, name = heapq.heappop(heap)
        if name in reached:
            continue
        reached.add(name)
        if way is not None:
            tree.add((way.source, way.target))
        for link in leaving.get(name, []):
            is_new = (link.source, link.target) not in kept
            heapq.heappush(heap, (-link.bandwidth, is_new, next(tie), link, ends(link)[1]))
    return tree


def _connected(
    names: Sequence[str], pairs: Sequence[Pair], degree: int, draw: np.random.Generator
) -> set[Pair]:
    """Random pairs, `degree` times the nodes over two, with a path between any two nodes."""
    place = {name: index for index, name in enumerate(names)}
    shuffled = _some(names, len(names), draw)
    chosen: set[Pair] = set()
    for index in range(1, len(shuffled)):  # a random tree: each joins one that is there
        a, b = shuffled[index], shuffled[int(draw.integers(index))]
        chosen.add((a, b) if place[a] < place[b] else (b, a))
    left = [pair for pair in pairs if pair not in chosen]
    return chosen | set(_some(left, round(len(names) * degree / 2) - len(chosen), draw))


def _some(values: Sequence[_T], number: int, draw: np.random.Generator) -> list[_T]:
    """So many of them, in random order."""
    return [values[int(index)] for index in draw.permutation(len(values))[:number]]


def _check_degrees(
    num_nodes: int, degree: int | None, source_degree: int | None, sink_degree: int | None
) -> None:
    least = -(-2 * (num_nodes - 1) // num_nodes) if num_nodes else 0  # of a tree
    if degree is not None and not least <= degree < max(num_nodes, 1):
        raise ConfigError(
            f"degree={degree}: {num_nodes} nodes that are all connected have {least} to "
            f"{num_nodes - 1} neighbours on average"
        )
    for key, value in (("source_degree", source_degree), ("sink_degree", sink_degree)):
        if value is not None and not 1 <= value <= num_nodes:
            raise ConfigError(f"{key}={value}: give 1 to {num_nodes}, the number of nodes")


def _in_order(links: Iterable[Link], names: Sequence[str]) -> tuple[Link, ...]:
    """By source, then target, as the nodes come; the coordinator's first and last."""
    place = {name: index for index, name in enumerate([SOURCE, *names, SINK])}
    return tuple(sorted(links, key=lambda link: (place[link.source], place[link.target])))
