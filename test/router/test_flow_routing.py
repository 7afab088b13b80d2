"""Routing through nodes with layers: shares follow the flow, KV memory holds, baselines do what they say."""

from __future__ import annotations

import random
from collections import Counter, deque
from dataclasses import dataclass, replace

import pytest

from chitu_like.cluster.topology import SINK, SOURCE
from chitu_like.core.errors import CapacityError, ConfigError
from chitu_like.router.flow_edges import Ends, Route, RoutedNode
from chitu_like.router.flow_routing import (
    ROUTER_NAMES,
    FlowRouter,
    KVEstimate,
    MaxFlowRouter,
    make_flow_router,
)


@dataclass
class Load:
    num_waiting: int = 0
    num_waiting_tokens: int = 0


def node(start: int, stop: int, kv_tokens: int = 10**9, speed: float = 1.0) -> RoutedNode:
    return RoutedNode(
        layers=range(start, stop),
        kv_tokens=kv_tokens,
        max_prompt_tokens=4096,
        tokens_per_s=speed,
    )


# Two ways in, one of which runs more layers than the other; c can take over from both.
NODES = {"a": node(0, 4), "b": node(0, 2), "c": node(2, 6), "d": node(4, 6)}
FLOW = {
    (SOURCE, "a"): 30.0,
    (SOURCE, "b"): 10.0,
    ("a", "c"): 12.0,
    ("a", "d"): 18.0,
    ("b", "c"): 10.0,
    ("c", SINK): 22.0,
    ("d", SINK): 18.0,
}


def router_of(
    name: str = "maxflow",
    nodes: dict[str, RoutedNode] | None = None,
    flow: dict[Ends, float] | None = None,
    loads: dict[str, Load] | None = None,
    kv: KVEstimate | None = None,
    seed: int = 0,
) -> FlowRouter:
    loads = loads or {}
    return make_flow_router(
        name,
        nodes or NODES,
        flow or FLOW,
        load_of=lambda name: loads.get(name, Load()),
        kv=kv or KVEstimate.offline(10),
        seed=seed,
    )


def whole_route(router: FlowRouter, num_input: int) -> Route:
    route = router.begin(num_input)
    assert route is not None
    while not route.is_whole:
        router.extend(route)
    return route


def names(route: Route) -> list[str]:
    return [edge.ends[1] for edge in route.edges[:-1]]


@pytest.mark.parametrize("num_decodes", [0, 7])
def test_tokens_of_each_edge_are_in_proportion_to_its_flow(num_decodes: int) -> None:
    router, chance = router_of(), random.Random(1)
    tokens: Counter[Ends] = Counter()
    for _ in range(5000):
        num_input = chance.randint(1, 2000)
        route = whole_route(router, num_input)
        for _ in range(num_decodes):
            router.decoded(route)
        for edge in route.edges:
            tokens[edge.ends] += num_input + num_decodes
        router.end(route)
    total = tokens[SOURCE, "a"] + tokens[SOURCE, "b"]
    assert {ends: n / total * 40 for ends, n in tokens.items()} == pytest.approx(FLOW, rel=0.005)


def test_prompts_are_interleaved_and_not_sent_in_runs() -> None:
    router = router_of()
    first = [names(whole_route(router, 100))[0] for _ in range(8)]
    assert first == ["a", "a", "a", "b", "a", "a", "a", "b"]


def test_decodes_count_for_the_way_they_go() -> None:
    even = {(SOURCE, "a"): 1.0, (SOURCE, "b"): 1.0, ("a", SINK): 1.0, ("b", SINK): 1.0}
    router = router_of(nodes={"a": node(0, 2), "b": node(0, 2)}, flow=even)
    route = whole_route(router, 10)
    assert names(route) == ["a"]
    for _ in range(20):  # as much as two more prompts
        router.decoded(route)
    assert [names(whole_route(router, 10)) for _ in range(4)] == [["b"], ["b"], ["b"], ["a"]]


def test_an_edge_with_hardly_any_flow_is_not_used() -> None:
    flow = {(SOURCE, "a"): 96.0, (SOURCE, "b"): 4.0, ("a", SINK): 96.0, ("b", SINK): 4.0}
    router = router_of(nodes={"a": node(0, 2), "b": node(0, 2)}, flow=flow)
    assert {names(whole_route(router, 10))[0] for _ in range(200)} == {"a"}


def test_many_small_edges_are_all_used() -> None:
    nodes = {f"n{i}": node(0, 2) for i in range(30)}
    flow = {ends: 1.0 for name in nodes for ends in ((SOURCE, name), (name, SINK))}
    router = router_of(nodes=nodes, flow=flow)
    assert {names(whole_route(router, 10))[0] for _ in range(30)} == set(nodes)


def test_a_target_whose_batches_take_fewer_tokens_is_skipped() -> None:
    nodes = {**NODES, "a": replace(NODES["a"], max_prompt_tokens=2048)}
    router = router_of(nodes=nodes)
    assert names(whole_route(router, 2048))[0] == "a"
    assert {names(whole_route(router, 2049))[0] for _ in range(9)} == {"b"}


def test_a_walk_that_fails_leaves_no_trace() -> None:
    nodes = {name: replace(NODES[name], max_prompt_tokens=400) for name in NODES}
    nodes |= {name: NODES[name] for name in "ab"}  # so that a walk fails only behind them
    disturbed, calm = router_of(nodes=nodes), router_of()
    for number in range(60):
        if number % 3 == 2:
            assert disturbed.begin(500) is None
        assert names(whole_route(disturbed, 100)) == names(whole_route(calm, 100))


def test_reservations_stay_under_the_high_water_mark_and_come_back() -> None:
    nodes = {name: node(n.layers.start, n.layers.stop, 1000) for name, n in NODES.items()}
    kv = KVEstimate(expected_output=50, output_ratio=0.5, high_water=0.75)
    router = MaxFlowRouter(nodes, FLOW, kv=kv)
    chance, live = random.Random(2), deque[Route]()
    num_refused = 0
    for _ in range(2000):
        route = router.begin(chance.randint(1, 300))
        if route is None:
            num_refused += 1
            router.end(live.popleft())
        else:
            live.append(route)
        reserved: Counter[str] = Counter()
        for one in live:
            for edge in one.edges[:-1]:
                reserved[edge.ends[1]] += (one.num_input + 25) * edge.num_layers
        for name, n in nodes.items():
            share = reserved[name] / (1000 * len(n.layers))
            assert router.reserved_share(name) == pytest.approx(share)
            assert share <= 0.75
    assert num_refused > 100
    while live:
        router.end(live.popleft())
    assert [router.reserved_share(name) for name in nodes] == [0, 0, 0, 0]


def test_a_feeder_has_room_up_to_its_mark_of_the_fullest_layer() -> None:
    nodes = {"a": node(0, 2, 100), "b": node(0, 2, 100), "c": node(2, 4, 150)}
    flow = dict.fromkeys(((SOURCE, "a"), (SOURCE, "b"), ("a", "c"), ("b", "c")), 1.0)
    kv = KVEstimate(expected_output=10, output_ratio=1.0, high_water=1.0, feed_mark=0.5)
    router = router_of(nodes=nodes, flow={**flow, ("c", SINK): 2.0}, kv=kv)
    whole_route(router, 65)
    assert router.has_room()  # 75 of 150
    whole_route(router, 1)
    assert not router.has_room()


def test_a_prompt_that_never_fits_is_told_in_one_line() -> None:
    nodes = {"a": node(0, 2, 100)}
    router = router_of(nodes=nodes, flow={(SOURCE, "a"): 1.0, ("a", SINK): 1.0})
    with pytest.raises(CapacityError, match=r"a prompt of 76 tokens.*0.85 of the nodes' KV memory"):
        router.begin(76)
    assert router.begin(75) is not None
    assert router.begin(75) is None


def test_the_next_node_runs_the_layers_beyond_the_last_done() -> None:
    router = router_of(flow={ends: FLOW[ends] for ends in FLOW if ends != ("a", "d")})
    by_way = {
        tuple(names(route)): [edge.num_layers for edge in route.edges]
        for route in (whole_route(router, 10) for _ in range(20))
    }
    assert by_way == {("a", "c"): [4, 2, 0], ("b", "c"): [2, 4, 0]}


@pytest.mark.parametrize("name", ROUTER_NAMES)
def test_every_router_goes_the_same_ways_with_the_same_seed(name: str) -> None:
    ways = []
    for _ in range(2):
        router = router_of(name, seed=5)
        ways.append([names(whole_route(router, 10 + i)) for i in range(100)])
    assert ways[0] == ways[1]
    assert all(NODES[way[-1]].layers.stop == 6 for way in ways[0])


@pytest.mark.parametrize("name", ["swarm", "random", "shortest_queue"])
def test_the_others_hold_no_more_than_240_requests(name: str) -> None:
    router = router_of(name)
    routes = [whole_route(router, 10) for _ in range(240)]
    assert not router.has_room()
    assert router.begin(10) is None
    router.end(routes[0])
    assert router.has_room()
    assert router.begin(10) is not None


def test_random_takes_each_next_node_alike() -> None:
    router = router_of("random")
    firsts: Counter[str] = Counter()
    for _ in range(2000):
        route = whole_route(router, 10)
        firsts[names(route)[0]] += 1
        router.end(route)
    assert firsts["a"] == pytest.approx(1000, abs=100)


def test_shortest_queue_takes_the_node_with_fewest_waiting() -> None:
    loads = {"a": Load(num_waiting=3, num_waiting_tokens=3), "b": Load(2, 2000)}
    router = router_of("shortest_queue", loads=loads)
    assert names(whole_route(router, 10))[0] == "b"
    loads["b"].num_waiting = 4
    assert names(whole_route(router, 10))[0] == "a"


def test_swarm_takes_the_node_that_is_done_first() -> None:
    nodes = {"a": node(0, 2, speed=10.0), "b": node(0, 2, speed=1.0)}
    flow = {ends: 1.0 for name in nodes for ends in ((SOURCE, name), (name, SINK))}
    loads = {"a": Load(num_waiting_tokens=80), "b": Load()}
    router = router_of("swarm", nodes, flow, loads)
    assert names(whole_route(router, 10)) == ["a"]  # 90 / 10 before 10 / 1
    loads["a"].num_waiting_tokens = 100
    assert names(whole_route(router, 10)) == ["b"]


def test_queues_are_asked_when_the_prompt_gets_there() -> None:
    loads = {"c": Load(num_waiting=1), "d": Load()}
    router = router_of("shortest_queue", loads=loads, flow={**FLOW, (SOURCE, "b"): 0.0})
    loads["b"] = Load(num_waiting=9)
    route = router.begin(10)
    assert route is not None
    loads["d"].num_waiting = 2
    router.extend(route)
    assert names(route) == ["a"]
    assert route.edges[-1].ends == ("a", "c")


def test_dead_ends_are_not_entered() -> None:
    flow = {ends: rate for ends, rate in FLOW.items() if ends != ("c", SINK)}
    router = router_of("random", flow=flow)
    assert {tuple(names(whole_route(router, 10))) for _ in range(50)} == {("a", "d")}


def test_an_unknown_router_is_told_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"simulate\.router=fastest: use one of maxflow, swarm"):
        router_of("fastest")


def test_a_flow_between_layers_that_do_not_follow_is_told_in_one_line() -> None:
    with pytest.raises(ConfigError, match="flow b -> d: the layers there do not follow"):
        router_of(flow={**FLOW, ("b", "d"): 1.0})


def test_a_flow_that_leads_nowhere_is_told_in_one_line() -> None:
    with pytest.raises(ConfigError, match="no way leads through all 6 layers"):
        router_of(flow={(SOURCE, "a"): 1.0, ("d", SINK): 1.0})
