"""Flow and Little's law: by hand on one node, and what has to hold of every score."""

from __future__ import annotations

import math

import pytest
from planner.straight_times import StraightTimes

from chitu_like.cluster.cost_model import ModelFacts
from chitu_like.cluster.layer_placement import LayerPlacement
from chitu_like.cluster.topology import SINK, SOURCE, Cluster, Link, Node
from chitu_like.planner import NodeThroughput, Score, Scorer, TypicalLoad, evaluate

MODEL = ModelFacts(name="toy", num_layers=4, layer_bytes=1.0, activation_bytes=9.0, token_bytes=1.0)
LOAD = TypicalLoad(mean_input=100, mean_output=50)


def throughput(kv: int, *rates: float, most: int = 1000) -> NodeThroughput:
    return NodeThroughput(
        model=MODEL,
        load=LOAD,
        layer_times={"gpu": StraightTimes(kv, max_decodes=most)},
        tokens_per_s={"gpu": rates},
    )


def cluster(num_nodes: int, *, latency_s: float = 0.0) -> Cluster:
    names = [f"n{i}" for i in range(num_nodes)]
    nodes = tuple(Node(name=name, device="gpu", memory_bytes=100.0) for name in names)
    ends = [(SOURCE, name) for name in names] + [(name, SINK) for name in names]
    ends += [(a, b) for a in names for b in names if a != b]
    links = (Link(source=a, target=b, bandwidth=1e9, latency_s=latency_s) for a, b in ends)
    return Cluster(nodes, tuple(links))


def score(where: Cluster, rates: NodeThroughput, held: dict[str, range]) -> Score:
    flow = evaluate(where, MODEL, rates, LayerPlacement(4, held))
    return Scorer(where, rates).score(flow, held)


def test_with_room_for_all_a_placement_serves_its_flow_at_the_latency_of_its_batches():
    """1.5 tokens/s are 0.01 requests/s: hardly ever two at once, on a node with 4 layers."""
    found = score(cluster(1), throughput(10**9, 6.0, 3.0, 2.0, 1.5), {"n0": range(4)})
    assert found.tokens_per_s == pytest.approx(1.5)
    assert found.requests_per_s == pytest.approx(0.01)
    assert found.decode_latency_s == pytest.approx(1.5 * 4 * 1e-3, rel=0.01)
    assert found.prompt_latency_s == pytest.approx(1.5 * 4 * 1e-3 + 4 * 100e-4, rel=0.02)
    assert found.kv_use < 1e-6


def test_links_add_their_latency_to_every_token():
    rates, held = throughput(10**9, 6.0, 3.0, 2.0, 1.5), {"n0": range(2), "n1": range(2, 4)}
    near, far = (score(cluster(2, latency_s=s), rates, held) for s in (0.0, 0.1))
    assert far.prompt_latency_s - near.prompt_latency_s == pytest.approx(0.3, rel=1e-6)
    assert far.decode_latency_s - near.decode_latency_s == pytest.approx(0.3, rel=0.02)


@pytest.mark.parametrize("kv", [300, 400, 1000])
def test_a_full_kv_cache_lets_in_as_many_requests_as_fit(kv):
    """Requests of 150 tokens, 85 % of the cache: by Little's law rate x time is what fits."""
    found = score(cluster(1), throughput(kv, 4e3, 2e3, 1.3e3, 1e3), {"n0": range(4)})
    assert found.tokens_per_s < 1e3
    assert found.kv_use == pytest.approx(1, abs=2e-3)
    assert found.in_flight == pytest.approx(0.85 * kv / 150, rel=2e-3)
    seconds = found.prompt_latency_s + 49 * found.decode_latency_s
    assert found.in_flight == pytest.approx(found.requests_per_s * seconds)


def test_the_larger_flow_serves_fewer_tokens_when_its_requests_live_longer():
    """Two replicas against a pipeline of two over slow links, both with room for few requests."""
    rates, where = throughput(2000, 4e3, 2.2e3, 1.3e3, 1e3), cluster(2, latency_s=0.01)
    short = {"n0": range(4), "n1": range(4)}
    long = {"n0": range(2), "n1": range(2, 4)}
    flows = [
        evaluate(where, MODEL, rates, LayerPlacement(4, held)).max_flow for held in (short, long)
    ]
    assert flows == [2000.0, 2200.0]
    assert score(where, rates, long).tokens_per_s < 0.9 * score(where, rates, short).tokens_per_s


def test_a_node_does_not_decode_more_at_once_than_it_can():
    """Batches of 2 at most: 4 layers take 4 (1 + 0.02) ms for 2 tokens."""
    rates = throughput(10**9, 4e4, 2e4, 1.3e4, 1e4, most=2)
    found = score(cluster(1), rates, {"n0": range(4)})
    assert 0 < found.requests_per_s * 50 < 2 / (4 * 1.02e-3)


def test_nothing_is_served_where_nothing_flows():
    found = score(cluster(1), throughput(10**9, 6.0, 3.0, 2.0, 1.5), {"n0": range(2)})
    assert found == Score()
    assert math.isinf(found.decode_latency_s)


def test_asked_for_more_than_is_served_a_score_is_not_looked_for():
    where, rates, held = cluster(1), throughput(1000, 4e3, 2e3, 1.3e3, 1e3), {"n0": range(4)}
    flow = evaluate(where, MODEL, rates, LayerPlacement(4, held))
    scorer = Scorer(where, rates)
    served = scorer.score(flow, held).tokens_per_s
    assert scorer.score_routes(flow.routes, held, least=served * 1.01) == Score()
    again = scorer.score_routes(flow.routes, held, least=served * 0.99)
    assert again.tokens_per_s == pytest.approx(served, rel=1e-3)
