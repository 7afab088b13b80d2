"""Maximum flow: small graphs by hand, random ones against the definition (feasible, and equal to a cut)."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest

from chitu_like.cluster.flow import Edge, decompose, max_flow


def random_graph(seed: int) -> tuple[int, list[Edge]]:
    rng = random.Random(seed)
    n = rng.randint(2, 12)
    edges = []
    for _ in range(rng.randint(0, 5 * n)):
        tail, head = rng.sample(range(n), 2)
        edges.append((tail, head, rng.choice([0.0, 0.1, 0.3, rng.random(), 1e6 * rng.random()])))
    return n, edges


def test_a_path_carries_what_its_narrowest_edge_does():
    flow = max_flow(4, [(0, 1, 3.0), (1, 2, 0.5), (2, 3, 2.0)], 0, 3)
    assert (flow.value, flow.on_edge, flow.cut) == (0.5, (0.5, 0.5, 0.5), (1,))


def test_an_early_choice_is_taken_back():
    """The way 0-1-2-3 must not block 0-1-3 and 0-2-3."""
    edges = [(0, 1, 1.0), (0, 2, 1.0), (1, 2, 1.0), (1, 3, 1.0), (2, 3, 1.0)]
    assert max_flow(4, edges, 0, 3).value == 2.0


def test_an_edge_without_a_limit_carries_all_that_comes():
    edges = [(0, 1, 0.1), (0, 1, 0.2), (1, 2, math.inf), (2, 3, math.inf)]
    flow = max_flow(4, edges, 0, 3)
    assert flow.value == pytest.approx(0.3)
    assert flow.on_edge[2] == pytest.approx(0.3)
    assert flow.cut == (0, 1)


@pytest.mark.parametrize("edges", [[], [(1, 0, 5.0)], [(0, 1, 0.0)]])
def test_without_a_way_nothing_flows(edges):
    flow = max_flow(2, edges, 0, 1)
    assert flow.value == 0.0
    assert decompose(2, edges, flow, 0, 1) == []


def test_a_flow_without_any_limit_is_refused():
    with pytest.raises(ValueError, match="nothing limits"):
        max_flow(3, [(0, 1, math.inf), (1, 2, math.inf)], 0, 2)


@pytest.mark.parametrize("capacity", [-1.0, math.nan])
def test_a_capacity_that_makes_no_sense_is_refused(capacity):
    with pytest.raises(ValueError, match=r"0 -> 1 has the capacity"):
        max_flow(2, [(0, 1, capacity)], 0, 1)


@pytest.mark.parametrize("seed", range(200))
def test_a_flow_keeps_to_the_capacities_and_equals_its_cut(seed):
    n, edges = random_graph(seed)
    flow = max_flow(n, edges, 0, n - 1)
    balance = [0.0] * n
    for (tail, head, capacity), amount in zip(edges, flow.on_edge, strict=True):
        assert 0 <= amount <= capacity
        balance[tail] -= amount
        balance[head] += amount
    slack = 1e-9 * max(flow.value, 1.0)
    assert balance[n - 1] == pytest.approx(flow.value, abs=slack)
    assert all(abs(left) <= slack for left in balance[1:-1])
    assert sum(edges[index][2] for index in flow.cut) == pytest.approx(flow.value, abs=slack)


@pytest.mark.parametrize("seed", range(200))
def test_paths_follow_edges_and_add_up_to_the_flow(seed):
    n, edges = random_graph(seed)
    flow = max_flow(n, edges, 0, n - 1)
    paths = decompose(n, edges, flow, 0, n - 1)
    assert sum(path.flow for path in paths) == pytest.approx(flow.value, rel=1e-6, abs=1e-9)
    between: dict[tuple[int, int], float] = {}
    for (tail, head, _), amount in zip(edges, flow.on_edge, strict=True):
        between[tail, head] = between.get((tail, head), 0.0) + amount
    for path in paths:
        assert (path.vertices[0], path.vertices[-1]) == (0, n - 1)
        assert len(set(path.vertices)) == len(path.vertices)
        for step in pairwise(path.vertices):
            between[step] -= path.flow
    assert min(between.values(), default=0.0) >= -1e-6 * max(flow.value, 1.0)


def test_a_circle_of_flow_is_on_no_path():
    edges = [(0, 1, 1.0), (1, 2, 5.0), (2, 1, 4.0), (2, 3, 1.0)]
    flow = max_flow(4, edges, 0, 3)
    whirl = type(flow)(value=1.0, on_edge=(1.0, 3.0, 2.0, 1.0), cut=flow.cut)
    paths = decompose(4, edges, whirl, 0, 3)
    assert [(path.vertices, path.flow) for path in paths] == [((0, 1, 2, 3), 1.0)]
