"""Max flow against networkx, and a flow's paths against the flow, on graphs of every shape."""

from __future__ import annotations

import math
import random
from collections import defaultdict

import networkx
import pytest

from chitu_like.cluster.flow import Edge, MaxFlow, decompose, max_flow

CAPACITIES = {
    "integers": lambda draw: float(draw.randint(0, 20)),
    "like each other": lambda draw: draw.random(),
    "far apart": lambda draw: 10 ** draw.uniform(-4, 7),
    "many equal": lambda draw: draw.choice([0.1, 0.2, 0.3, 0.6]),
    "some without limit": lambda draw: draw.choice([1.5, 0.7, math.inf]),
}


def graph_of(seed: int, kind: str) -> tuple[int, list[Edge]]:
    """Source 0, sink 1, circles and parallel edges too; nothing without limit leaves the source."""
    draw = random.Random(f"{seed} {kind}")
    num_vertices = draw.randint(2, 14)
    num_edges = draw.randint(0, 4 * num_vertices)
    edges = []
    for _ in range(num_edges):
        tail, head = draw.sample(range(num_vertices), 2)
        capacity = CAPACITIES[kind](draw)
        edges.append((tail, head, min(capacity, 1e9) if tail == 0 else capacity))
    return num_vertices, edges


def networkx_value(num_vertices: int, edges: list[Edge]) -> float:
    graph: networkx.DiGraph[int] = networkx.DiGraph()
    graph.add_nodes_from(range(num_vertices))
    together: dict[tuple[int, int], float] = defaultdict(float)
    for tail, head, capacity in edges:
        together[tail, head] += capacity
    for (tail, head), capacity in together.items():
        graph.add_edge(tail, head, capacity=capacity)
    return float(networkx.maximum_flow_value(graph, 0, 1))


def check_it_is_a_flow(num_vertices: int, edges: list[Edge], flow: MaxFlow) -> None:
    """Within capacities, and what enters a vertex leaves it."""
    tolerance = 1e-12 * max([flow.value, *flow.on_edge], default=0.0)
    excess = [0.0] * num_vertices
    for (tail, head, capacity), amount in zip(edges, flow.on_edge, strict=True):
        assert 0 <= amount <= capacity + tolerance
        excess[tail] -= amount
        excess[head] += amount
    excess[0] += flow.value
    excess[1] -= flow.value
    assert max(map(abs, excess)) <= tolerance * num_vertices * 4


@pytest.mark.parametrize("kind", CAPACITIES)
def test_max_flow_is_networkx_flow_and_its_paths_add_up(kind: str) -> None:
    for seed in range(120):
        num_vertices, edges = graph_of(seed, kind)
        flow = max_flow(num_vertices, edges, 0, 1)
        assert flow.value == pytest.approx(networkx_value(num_vertices, edges), rel=1e-9), seed
        check_it_is_a_flow(num_vertices, edges, flow)
        assert sum(edges[index][2] for index in flow.cut) == pytest.approx(flow.value, rel=1e-9)

        paths = decompose(num_vertices, edges, flow, 0, 1)
        assert sum(path.flow for path in paths) == pytest.approx(flow.value, rel=1e-7)
        assert len(paths) <= len(edges)
        used: dict[tuple[int, int], float] = defaultdict(float)
        for path in paths:
            assert (path.vertices[0], path.vertices[-1]) == (0, 1)
            assert len(set(path.vertices)) == len(path.vertices), "no path comes by twice"
            for ends in zip(path.vertices, path.vertices[1:], strict=False):
                used[ends] += path.flow
        room: dict[tuple[int, int], float] = defaultdict(float)
        for (tail, head, _), amount in zip(edges, flow.on_edge, strict=True):
            room[tail, head] += amount
        for ends, amount in used.items():
            assert amount <= room[ends] * (1 + 1e-9), "paths carry no more than the flow does"


def test_without_a_cut_there_is_no_path() -> None:
    for seed in range(60):
        num_vertices, edges = graph_of(seed, "integers")
        cut = set(max_flow(num_vertices, edges, 0, 1).cut)
        rest = [edge for index, edge in enumerate(edges) if index not in cut]
        assert max_flow(num_vertices, rest, 0, 1).value == 0


def test_an_unlimited_flow_and_a_senseless_capacity_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing limits"):
        max_flow(3, [(0, 2, math.inf), (2, 1, math.inf)], 0, 1)
    for capacity in (-1.0, math.nan):
        with pytest.raises(ValueError, match="capacity"):
            max_flow(2, [(0, 1, capacity)], 0, 1)
