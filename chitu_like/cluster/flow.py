"""Exact maximum flow, its cut and its paths, on graphs of some hundred vertices.

Dinic's algorithm (1970), which never asks whether capacities are integers: the edge that limits a path is
left with a residual of exactly 0, so the number of rounds depends on the vertices alone and the result is
exact but for the rounding of its sums.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Edge = tuple[int, int, float]
"""(from, to, capacity); the capacity may be inf."""

NEGLIGIBLE = 1e-9
"""Share of the whole flow below which a path is a rounding error, not a path."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MaxFlow:
    """A flow that no other exceeds.

    Attributes:
        value: from source to sink.
        on_edge: in the order of the edges.
        cut: indices of edges that limit it: all full, and with them gone no path is left. Of all such cuts
            it is the one nearest to the sink.
    """

    value: float
    on_edge: tuple[float, ...]
    cut: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowPath:
    """A part of a flow that takes one way.

    Attributes:
        vertices: from source to sink.
        flow: on each edge between them.
    """

    vertices: tuple[int, ...]
    flow: float


def max_flow(num_vertices: int, edges: Sequence[Edge], source: int, sink: int) -> MaxFlow:
    """The largest flow from `source` to `sink`; any graph, parallel edges and circles too.

    Args:
        num_vertices: they are numbered from 0.
        edges: with capacities of at least 0.
        source: where it comes from.
        sink: where it goes, another vertex.

    Raises: ValueError for a capacity that is negative or NaN, and where nothing limits the flow.
    """
    assert source != sink, f"source and sink are the same vertex {source}"
    graph = _Residuals(num_vertices, edges)
    value = 0.0
    distances = graph.distances_to(sink, source)
    while distances[source] >= 0:
        value += graph.fill(distances, source, sink)
        distances = graph.distances_to(sink, source)
    return MaxFlow(
        value=value,
        on_edge=tuple(  # the sum of what was pushed may be a rounding above what fits
            min(edge[2], flow) for edge, flow in zip(edges, graph.left[1::2], strict=True)
        ),
        cut=tuple(
            index
            for index, (tail, head, _) in enumerate(edges)
            if distances[tail] < 0 <= distances[head]
        ),
    )


class _Residuals:
    """What may still flow: edge i as 2i, what could be taken back of it as 2i + 1."""

    def __init__(self, num_vertices: int, edges: Sequence[Edge]) -> None:
        self.heads: list[int] = []
        self.left: list[float] = []
        self.leaving: list[list[int]] = [[] for _ in range(num_vertices)]
        for tail, head, capacity in edges:
            if not capacity >= 0:
                raise ValueError(f"edge {tail} -> {head} has the capacity {capacity}")
            self.leaving[tail].append(len(self.heads))
            self.leaving[head].append(len(self.heads) + 1)
            self.heads += (head, tail)
            self.left += (capacity, 0.0)

    def distances_to(self, sink: int, source: int) -> list[int]:
        """Edges from each vertex to the sink, -1 where none lead there; not beyond the source."""
        heads, left, leaving = self.heads, self.left, self.leaving
        distances = [-1] * len(leaving)
        distances[sink] = 0
        queue = [sink]
        for vertex in queue:
            if vertex == source:
                break
            for edge in leaving[vertex]:
                tail = heads[edge]
                if distances[tail] < 0 and left[edge ^ 1] > 0:
                    distances[tail] = distances[vertex] + 1
                    queue.append(tail)
        return distances

    def fill(self, distances: list[int], source: int, sink: int) -> float:
        """Push flow along shortest paths until each has a full edge; return how much it was."""
        heads, left, leaving = self.heads, self.left, self.leaving
        untried = [
            len(edges) for edges in leaving
        ]  # edges at or beyond this are known to be useless
        pushed = 0.0
        path: list[int] = []
        vertex = source
        while True:
            if vertex == sink:
                flow = min([left[edge] for edge in path])
                if flow == math.inf:
                    raise ValueError("nothing limits the flow")
                pushed += flow
                for edge in path:
                    left[edge] -= flow
                    left[edge ^ 1] += flow
                full = next(place for place, edge in enumerate(path) if left[edge] == 0)
                vertex = heads[path[full] ^ 1]
                del path[full:]
            edges, place, nearer = leaving[vertex], untried[vertex] - 1, distances[vertex] - 1
            while place >= 0:
                edge = edges[place]
                if left[edge] > 0 and distances[heads[edge]] == nearer:
                    break
                place -= 1
            untried[vertex] = place + 1
            if place >= 0:
                path.append(edge)
                vertex = heads[edge]
            elif path:
                vertex = heads[path.pop() ^ 1]
                untried[vertex] -= 1
            else:
                return pushed


def decompose(
    num_vertices: int, edges: Sequence[Edge], flow: MaxFlow, source: int, sink: int
) -> list[FlowPath]:
    """The flow as paths that add up to it; circles, which carry nothing anywhere, are dropped.

    At most as many paths as edges: each uses one up. Paths under NEGLIGIBLE of the whole are left out.
    """
    left = list(flow.on_edge)
    leaving: list[list[int]] = [[] for _ in range(num_vertices)]
    for index, (tail, _, _) in enumerate(edges):
        leaving[tail].append(index)
    enough = flow.value * NEGLIGIBLE
    paths = []
    while walk := _walk(edges, leaving, left, source, sink):
        end = edges[walk[-1]][1]
        if end not in (sink, edges[walk[0]][0]):
            left[walk[-1]] = 0.0  # more came in than goes out: what rounding added
            continue
        amount = min(left[edge] for edge in walk)
        for edge in walk:
            left[edge] -= amount
        if end == sink and amount > enough:
            vertices = (source, *(edges[edge][1] for edge in walk))
            paths.append(FlowPath(vertices=vertices, flow=amount))
    return paths


def _walk(
    edges: Sequence[Edge],
    leaving: Sequence[Sequence[int]],
    left: Sequence[float],
    source: int,
    sink: int,
) -> list[int]:
    """Follow the largest flow from the source to the sink, around a circle, or to where none goes on."""
    walk: list[int] = []
    entered = {source: 0}  # vertex -> edges walked before it
    vertex = source
    while vertex != sink:
        edge = max(leaving[vertex], key=left.__getitem__, default=-1)
        if edge < 0 or left[edge] <= 0:
            break
        walk.append(edge)
        vertex = edges[edge][1]
        if vertex in entered:
            return walk[entered[vertex] :]
        entered[vertex] = len(walk)
    return walk
