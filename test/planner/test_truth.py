"""The planner against what is not the planner: networkx, every cut, every route, every placement."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Iterator

import pytest
from planner.brute_force import (
    all_placements,
    all_routes,
    best_flow,
    cut_flow,
    link_tokens,
    networkx_flow,
    route_flow,
)
from planner.toy_clusters import Toy, toy

from chitu_like.cluster.layer_placement import LayerPlacement
from chitu_like.cluster.topology import SINK, SOURCE
from chitu_like.core.errors import CapacityError, ConfigError
from chitu_like.planner.flow_graph import FlowResult, check_reachable, evaluate
from chitu_like.planner.heuristics import homogeneous, petals, swarm
from chitu_like.planner.local_search import SearchLimits, local_search


def result_of(toy: Toy, held: dict[str, range]) -> FlowResult:
    placement = LayerPlacement(toy.model.num_layers, held)
    return evaluate(toy.cluster, toy.model, toy.throughput, placement)


def drawn_placements(seed: int) -> tuple[Toy, list[dict[str, range]]]:
    """A toy and some placements of it, at least one of which serves something."""
    draw = random.Random(seed)
    drawn = toy(seed, num_nodes=3 + seed % 3, num_layers=5, max_layers=4)
    names = [node.name for node in drawn.cluster.nodes]
    rates = drawn.throughput
    found = [best_flow(drawn)[1]]
    for _ in range(15):
        held = {}
        for name in draw.sample(names, draw.randint(1, len(names))):
            k = draw.randint(1, min(5, rates.max_layers(drawn.cluster.by_name[name])))
            start = draw.choice([0, 5 - k, draw.randint(0, 5 - k)])
            held[name] = range(start, start + k)
        found.append(held)
    return drawn, found


def test_flow_is_the_same_whoever_computes_it() -> None:
    served = 0
    for seed in range(30):
        drawn, placements = drawn_placements(seed)
        for held in placements:
            flow = result_of(drawn, held).max_flow
            served += flow > 0
            assert flow == pytest.approx(networkx_flow(drawn, held), rel=1e-9), (seed, held)
            assert flow == pytest.approx(cut_flow(drawn, held), rel=1e-9), (seed, held)
            assert flow == pytest.approx(route_flow(drawn, held), rel=1e-6), (seed, held)
    assert served > 50, "most flows compared would be 0"


def test_routes_are_ways_through_all_layers_and_add_up_to_the_flow() -> None:
    num_routes = 0
    for seed in range(60):
        drawn, placements = drawn_placements(seed)
        for held in placements:
            check_routes(drawn, held)
            num_routes += len(result_of(drawn, held).routes)
    assert num_routes > 200


def check_routes(drawn: Toy, held: dict[str, range]) -> None:
    result, possible = result_of(drawn, held), set(all_routes(drawn, held))
    by_node: dict[str, float] = defaultdict(float)
    by_link: dict[tuple[str, str], float] = defaultdict(float)
    for route in result.routes:
        nodes = [hop.node for hop in route.hops]
        assert tuple(nodes) in possible
        assert [layer for hop in route.hops for layer in hop.layers] == list(range(5))
        assert all(set(hop.layers) <= set(held[hop.node]) for hop in route.hops)
        for name in nodes:
            by_node[name] += route.tokens_per_s
        for ends in itertools.pairwise([SOURCE, *nodes, SINK]):
            by_link[ends] += route.tokens_per_s
    total = sum(route.tokens_per_s for route in result.routes)
    assert total == pytest.approx(result.max_flow, rel=1e-7)
    assert set(result.node_flow) == set(held)
    for name, flow in result.node_flow.items():
        assert by_node[name] == pytest.approx(flow, rel=1e-7, abs=1e-7)
        assert flow <= result.node_capacity[name] * (1 + 1e-9)
    for ends, flow in result.link_flow.items():
        assert by_link[ends] == pytest.approx(flow, rel=1e-7, abs=1e-7)
        assert flow <= link_tokens(drawn, *ends) * (1 + 1e-9)
    assert set(by_link) <= set(result.link_flow)


def test_brute_force_passes_over_no_placement() -> None:
    for seed in range(6):
        small = toy(seed, num_nodes=3, num_layers=4, max_layers=3)
        best, held = best_flow(small)
        every = [cut_flow(small, placement) for placement in all_placements(small)]
        assert best == pytest.approx(max(every), rel=1e-12)
        assert networkx_flow(small, held) == pytest.approx(best, rel=1e-9)


HEURISTICS: dict[str, Callable[[Toy, int], LayerPlacement]] = {
    "petals": lambda toy, seed: petals(toy.cluster, toy.throughput, seed=seed),
    "swarm": lambda toy, seed: swarm(toy.cluster, toy.throughput),
    "homogeneous": lambda toy, seed: homogeneous(toy.cluster, toy.throughput, seed=seed),
    "separate": lambda toy, seed: homogeneous(
        toy.cluster, toy.throughput, seed=seed, leftovers=False
    ),
}


@pytest.mark.parametrize("name", HEURISTICS)
def test_heuristics_give_valid_placements_that_are_never_better_than_the_best(name: str) -> None:
    ratios = []
    for seed in range(40):
        drawn = toy(seed, num_nodes=4, num_layers=6, max_layers=4)
        best, _ = best_flow(drawn)
        try:
            placement = HEURISTICS[name](drawn, seed)
        except CapacityError:  # it cannot divide this cluster, and says so
            continue
        for node, layers in placement.held.items():
            assert len(layers) <= drawn.throughput.max_layers(drawn.cluster.by_name[node])
        flow = result_of(drawn, dict(placement.held)).max_flow
        assert flow <= best * (1 + 1e-9), (seed, placement)
        ratios.append(flow / best if best else 1.0)
    assert len(ratios) >= 20, "a heuristic that hardly ever finds anything is not one"
    assert max(ratios) > 0.9, "on some clusters a rule of thumb is enough"


def check_search(drawn: Toy, *budgets: int) -> None:
    """The best is found with one of the budgets, the first in most cases."""
    best, _ = best_flow(drawn)
    flow = 0.0
    for evaluations in budgets:
        found = local_search(
            drawn.cluster,
            drawn.model,
            drawn.throughput,
            limits=SearchLimits(evaluations=evaluations, time_s=60.0),
            objective="flow",
        )
        for one in found:
            flow = networkx_flow(drawn, one.placement.held)
            assert one.flow.max_flow == pytest.approx(flow, rel=1e-9)
        flow = found[0].flow.max_flow
        if flow >= best * (1 - 1e-9):
            break
    assert flow == pytest.approx(best, rel=1e-9)


def reachable(seeds: range, *, num_nodes: int, num_layers: int) -> Iterator[Toy]:
    """Toys in which something can be served, and every node can be come to."""
    for seed in seeds:
        drawn = toy(seed, num_nodes=num_nodes, num_layers=num_layers, max_layers=4)
        try:
            check_reachable(drawn.cluster)
        except ConfigError:
            continue
        if best_flow(drawn)[0] > 0:
            yield drawn


def test_local_search_reaches_the_best_of_all_placements_of_three_nodes() -> None:
    toys = list(reachable(range(12), num_nodes=3, num_layers=5))
    assert len(toys) >= 6
    for drawn in toys:
        check_search(drawn, 4000)


@pytest.mark.slow
def test_local_search_reaches_the_best_of_all_placements_of_five_nodes() -> None:
    toys = list(reachable(range(9), num_nodes=5, num_layers=6))
    assert len(toys) >= 6
    for drawn in toys:
        check_search(drawn, 30_000, 150_000)
