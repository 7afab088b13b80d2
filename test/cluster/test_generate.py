from __future__ import annotations

import itertools
from dataclasses import replace

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chitu_like.cluster.cluster_file import find_cluster, read_cluster
from chitu_like.cluster.generate import (
    LinkSpeed,
    numbered,
    partitioned,
    prune,
    single_region,
)
from chitu_like.cluster.topology import SINK, SOURCE, Cluster, Node
from chitu_like.core.errors import ConfigError

A100 = Node(name="A100", device="A100", memory_bytes=40e9, nic_in=10e9, nic_out=10e9, disk=1e9)
L4 = Node(name="L4", device="L4", memory_bytes=24e9, nic_in=10e9, nic_out=10e9, disk=1e9)
T4 = Node(name="T4", device="T4", memory_bytes=16e9, nic_in=10e9, nic_out=10e9, disk=1e9)
SPEED = LinkSpeed(bandwidth=1e9, latency_s=1e-3)
WILD = LinkSpeed(bandwidth=1e9, latency_s=1e-3, bandwidth_spread=5e8, latency_spread_s=1e-3)
SLOW = LinkSpeed(bandwidth=1e6, latency_s=0.1)


def graph_of(cluster: Cluster) -> nx.DiGraph:
    graph = nx.DiGraph()
    graph.add_nodes_from([SOURCE, SINK, *cluster.by_name])
    for link in cluster.links:
        graph.add_edge(link.source, link.target, bandwidth=link.bandwidth)
    return graph


def usable(cluster: Cluster) -> set[str]:
    graph = graph_of(cluster)
    return (nx.descendants(graph, SOURCE) & nx.ancestors(graph, SINK)) & set(cluster.by_name)


def widest(cluster: Cluster, source: str, target: str) -> float:
    """Bandwidth of the widest path: add links from the fastest on until there is a path."""
    links = sorted(cluster.links, key=lambda link: -link.bandwidth)
    graph = nx.DiGraph()
    graph.add_nodes_from([SOURCE, SINK, *cluster.by_name])
    for link in links:
        graph.add_edge(link.source, link.target)
        if nx.has_path(graph, source, target):
            return link.bandwidth
    return 0.0


def test_the_24_machines_of_the_issue_are_what_the_generator_makes() -> None:
    nodes = [*numbered(4, A100), *numbered(8, L4), *numbered(12, T4)]
    named = read_cluster(find_cluster("mixed-24"))
    made = single_region(nodes, SPEED)
    assert named.nodes == made.nodes
    assert set(named.links) == set(made.links)
    assert len(named.links) == 24 * 23 + 2 * 24


def test_the_named_regions_are_what_the_generator_makes() -> None:
    regions = {
        "a": numbered(4, replace(A100, name="a-A100")),
        "b": [*numbered(2, replace(L4, name="b-L4")), *numbered(8, replace(T4, name="b-T4"))],
        "c": [*numbered(6, replace(L4, name="c-L4")), *numbered(4, replace(T4, name="c-T4"))],
    }
    made = partitioned(
        regions,
        inner=LinkSpeed(bandwidth=1.25e9, latency_s=1e-3),
        cross=LinkSpeed(bandwidth=12.5e6, latency_s=0.05),
    )
    named = read_cluster(find_cluster("regions-24"))
    assert named.nodes == made.nodes
    assert len(named.links) == len(made.links)
    assert set(named.links) == set(made.links)


@pytest.mark.parametrize("name", ["h200", "h100x8", "mixed-24", "regions-24"])
def test_every_node_of_a_named_cluster_is_usable(name: str) -> None:
    cluster = read_cluster(find_cluster(name))
    assert usable(cluster) == set(cluster.by_name)


def test_the_same_seed_makes_the_same_cluster_and_another_one_another() -> None:
    nodes = numbered(9, T4)

    def make(seed: int) -> Cluster:
        cluster = single_region(
            nodes, WILD, degree=4, source_degree=3, sink_degree=3, slow_links=SLOW, seed=seed
        )
        return prune(cluster, 2, seed=seed)

    assert make(1) == make(1)
    assert make(1) != make(2)


@given(st.integers(1, 9), st.integers(0, 8), st.integers(0, 99), st.booleans())
@settings(max_examples=40, deadline=None)
def test_degrees_are_met_and_every_node_is_usable(
    number: int, degree: int, seed: int, fill: bool
) -> None:
    least = -(-2 * (number - 1) // number)
    degree = min(max(degree, least), number - 1)
    cluster = single_region(
        numbered(number, T4),
        WILD,
        degree=degree,
        source_degree=1,
        sink_degree=number,
        slow_links=SLOW if fill else None,
        seed=seed,
    )
    assert usable(cluster) == set(cluster.by_name)
    fast = [link for link in cluster.links if link.bandwidth > 2e6]
    inner = [link for link in fast if {link.source, link.target} <= cluster.by_name.keys()]
    assert len(inner) == 2 * round(number * degree / 2)
    assert sum(link.source == SOURCE for link in fast) == 1
    assert sum(link.target == SINK for link in fast) == number
    if fill:
        assert len(cluster.links) == number * (number - 1) + 2 * number


def test_figures_stay_in_their_interval_and_fill_it() -> None:
    cluster = single_region(numbered(12, T4), WILD)
    assert all(5e8 <= link.bandwidth <= 1.5e9 for link in cluster.links)
    assert all(0 <= link.latency_s <= 2e-3 for link in cluster.links)
    assert min(link.bandwidth for link in cluster.links) < 6e8
    assert max(link.bandwidth for link in cluster.links) > 1.4e9


def test_both_directions_of_a_link_have_the_same_figures() -> None:
    between = single_region(numbered(5, T4), WILD).link_between
    for (source, target), link in between.items():
        if {source, target}.isdisjoint({SOURCE, SINK}):
            back = between[target, source]
            assert (back.bandwidth, back.latency_s) == (link.bandwidth, link.latency_s)


def test_regions_are_fast_inside_and_slow_between() -> None:
    regions = {"east": numbered(2, A100), "west": numbered(3, T4)}
    cluster = partitioned(regions, inner=SPEED, cross=SLOW)
    assert [node.region for node in cluster.nodes] == ["east"] * 2 + ["west"] * 3
    for a, b in itertools.permutations(cluster.nodes, 2):
        link = cluster.link_between[a.name, b.name]
        assert link.bandwidth == (1e9 if a.region == b.region else 1e6)
    assert cluster.link_between[SOURCE, "A100-0"].bandwidth == 1e6
    nearer = partitioned(regions, inner=SPEED, cross=SLOW, coordinator=SPEED)
    assert nearer.link_between["T4-2", SINK].bandwidth == 1e9
    assert len(cluster.links) == 5 * 4 + 10


@given(st.integers(1, 8), st.integers(0, 4), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_pruning_keeps_every_node_usable_over_paths_as_wide(
    number: int, keep: int, seed: int
) -> None:
    cluster = single_region(numbered(number, T4), WILD, source_degree=1, seed=seed)
    pruned = prune(cluster, keep, seed=seed)
    assert set(pruned.links) <= set(cluster.links)
    assert usable(pruned) == set(cluster.by_name)
    assert len(pruned.links) <= (number + 2) * keep + 2 * number
    for name in cluster.by_name:
        assert widest(pruned, SOURCE, name) == widest(cluster, SOURCE, name)
        assert widest(pruned, name, SINK) == widest(cluster, name, SINK)


def test_pruning_keeps_the_fastest_links_of_a_node() -> None:
    cluster = single_region(numbered(8, T4), WILD)
    kept = set(prune(cluster, 3).links)
    for name in cluster.by_name:
        inner = [link for link in cluster.links if link.source == name and link.target != SINK]
        assert set(sorted(inner, key=lambda link: -link.bandwidth)[:3]) <= kept


def test_equal_links_are_not_all_kept_to_the_same_nodes() -> None:
    pruned = prune(single_region(numbered(20, T4), SPEED), 3)
    into = [sum(link.target == name for link in pruned.links) for name in pruned.by_name]
    assert max(into) < 12


@pytest.mark.parametrize(
    ("degrees", "message"),
    [
        ({"degree": 1}, "degree=1: 4 nodes that are all connected have 2 to 3"),
        ({"degree": 4}, "degree=4"),
        ({"source_degree": 0}, "source_degree=0: give 1 to 4"),
        ({"sink_degree": 5}, "sink_degree=5: give 1 to 4"),
    ],
)
def test_degrees_that_cannot_be_are_refused(degrees: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        single_region(numbered(4, T4), SPEED, **degrees)


def test_spreads_that_cross_zero_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"bandwidth_spread=2.0: give 0 to less than the mean"):
        LinkSpeed(bandwidth=2.0, latency_s=0, bandwidth_spread=2.0)
    with pytest.raises(ConfigError, match=r"latency_spread_s=1"):
        LinkSpeed(bandwidth=2.0, latency_s=0.5, latency_spread_s=1)
    with pytest.raises(ConfigError, match="keep=-1"):
        prune(single_region(numbered(2, T4), SPEED), -1)
