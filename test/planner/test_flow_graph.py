"""A placement as a flow: capacities, rules and words on clusters of one to three nodes."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from chitu_like.cluster.cost_model import ModelFacts
from chitu_like.cluster.layer_placement import LayerPlacement
from chitu_like.cluster.topology import SINK, SOURCE, Cluster, Link, Node
from chitu_like.core.errors import CapacityError, ConfigError
from chitu_like.planner import (
    FlowResult,
    NodeThroughput,
    TypicalLoad,
    check_reachable,
    evaluate,
)

MODEL = ModelFacts(name="toy", num_layers=4, layer_bytes=1.0, activation_bytes=9.0, token_bytes=1.0)
# Tokens a second of a node with 1 to 4 layers.
RATES = (40.0, 20.0, 12.0, 10.0)
THROUGHPUT = NodeThroughput(
    model=MODEL, load=TypicalLoad(), layer_times={}, tokens_per_s={"gpu": RATES}
)


def cluster(num_nodes: int, *, inner: float = 1e6, outer: float = 1e6, **nic: float) -> Cluster:
    names = [f"n{i}" for i in range(num_nodes)]
    nodes = tuple(Node(name=name, device="gpu", memory_bytes=100.0, **nic) for name in names)
    links = [Link(source=SOURCE, target=name, bandwidth=outer) for name in names]
    links += [Link(source=name, target=SINK, bandwidth=outer) for name in names]
    links += [Link(source=a, target=b, bandwidth=inner) for a in names for b in names if a != b]
    return Cluster(nodes, tuple(links))


def flow_of(where: Cluster, held: Mapping[str, range]) -> FlowResult:
    return evaluate(where, MODEL, THROUGHPUT, LayerPlacement(4, held))


def ways(result: FlowResult) -> dict[tuple[tuple[str, int, int], ...], float]:
    return {
        tuple((hop.node, hop.layers.start, hop.layers.stop) for hop in route.hops): (
            route.tokens_per_s
        )
        for route in result.routes
    }


def test_a_pipeline_is_as_fast_as_its_slowest_node():
    result = flow_of(cluster(2), {"n0": range(3), "n1": range(3, 4)})
    assert result.max_flow == 12.0
    assert ways(result) == {(("n0", 0, 3), ("n1", 3, 4)): 12.0}
    assert result.node_flow == {"n0": 12.0, "n1": 12.0}
    assert result.node_capacity == {"n0": 12.0, "n1": 40.0}
    assert result.link_flow == {(SOURCE, "n0"): 12.0, ("n0", "n1"): 12.0, ("n1", SINK): 12.0}
    assert result.bottleneck == ("node n0",)


def test_replicas_add_up():
    result = flow_of(cluster(3), {"n0": range(2), "n1": range(2), "n2": range(2, 4)})
    assert result.max_flow == 20.0
    assert result.bottleneck == ("node n2",)
    assert flow_of(cluster(2), {"n0": range(4), "n1": range(4)}).max_flow == 20.0


def test_a_node_may_take_over_within_its_layers():
    """n1 holds 1-3 and runs 2-3 after n0; its T is that of the three layers it holds."""
    result = flow_of(cluster(2), {"n0": range(2), "n1": range(1, 4)})
    assert ways(result) == {(("n0", 0, 2), ("n1", 2, 4)): 12.0}


def test_a_node_that_adds_no_layer_gets_nothing():
    """n1 ends where n0 does: between them there is no way, and both end in n2."""
    result = flow_of(cluster(3), {"n0": range(2), "n1": range(1, 2), "n2": range(2, 4)})
    assert ways(result) == {(("n0", 0, 2), ("n2", 2, 4)): 20.0}
    assert result.node_flow["n1"] == 0.0


def test_a_gap_stops_everything_and_is_named():
    result = flow_of(cluster(2), {"n0": range(1), "n1": range(2, 4)})
    assert result.max_flow == 0.0
    assert result.routes == ()
    assert result.bottleneck == ("layer 1: no node holds it",)


def test_between_nodes_a_token_has_its_activation_with_it():
    """50 bytes/s: 5 tokens of 1 + 9 bytes, while source and sink would take 50 of 1 byte."""
    result = flow_of(cluster(2, inner=50.0, outer=50.0), {"n0": range(2), "n1": range(2, 4)})
    assert result.max_flow == 5.0
    assert result.bottleneck == ("link n0 -> n1",)
    result = flow_of(cluster(2, outer=6.0), {"n0": range(2), "n1": range(2, 4)})
    assert result.max_flow == 6.0
    assert set(result.bottleneck) & {f"link {SOURCE} -> n0", f"link n1 -> {SINK}"}


def test_a_nic_that_sees_the_coordinator_alone_takes_bare_tokens():
    """60 bytes/s: 60 tokens in from the source, but 6 in from another node."""
    held = {"n0": range(2), "n1": range(2, 4)}
    result = flow_of(cluster(2, nic_in=60.0), held)
    assert result.max_flow == 6.0
    assert result.bottleneck == ("NIC in of node n1",)
    assert result.node_capacity == {"n0": 20.0, "n1": 6.0}
    result = flow_of(cluster(2, nic_out=60.0), held)
    assert result.bottleneck == ("NIC out of node n0",)
    assert flow_of(cluster(1, nic_in=60.0, nic_out=60.0), {"n0": range(4)}).max_flow == 10.0


def test_a_nic_that_also_sees_nodes_takes_the_larger_tokens_of_both():
    """n1 holds all and hears the source as well as n0, which could hand over after layer 0."""
    held = {"n0": range(1), "n1": range(4)}
    assert flow_of(cluster(2, nic_in=60.0), held).node_capacity["n1"] == 6.0


def test_what_does_not_exist_is_no_way():
    whole = cluster(2)
    links = tuple(link for link in whole.links if (link.source, link.target) != ("n0", "n1"))
    result = flow_of(Cluster(whole.nodes, links), {"n0": range(2), "n1": range(2, 4)})
    assert result.max_flow == 0.0
    assert result.bottleneck == ("the links: none leads on from where the last one ended",)


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ({"n7": range(4)}, "the placement names node n7, which the cluster has not"),
        ({"n0": range(4)}, "node n0 is to hold 4 layers of toy and holds 3 at most: give it fewer"),
    ],
)
def test_a_placement_that_cannot_be_is_refused(held, message):
    where = Cluster((Node(name="n0", device="gpu", memory_bytes=6.0),), cluster(1).links)
    with pytest.raises((ConfigError, CapacityError)) as error:
        flow_of(where, held)
    assert str(error.value) == message


def test_a_placement_of_another_model_is_refused():
    with pytest.raises(ConfigError, match="5 layers and toy 4"):
        evaluate(cluster(1), MODEL, THROUGHPUT, LayerPlacement(5, {"n0": range(4)}))


@pytest.mark.parametrize(("end", "words"), [(SOURCE, "leads to it from the"), (SINK, "from it to")])
def test_a_node_that_nothing_leads_to_is_named(end, words):
    whole = cluster(2)
    links = tuple(
        link
        for link in whole.links
        if "n1" not in ((link.target,) if end == SOURCE else (link.source,))
    )
    check_reachable(whole)
    with pytest.raises(ConfigError, match=f"node n1 is unreachable: .*{words}"):
        check_reachable(Cluster(whole.nodes, links))
