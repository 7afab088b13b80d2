"""Multicast plans against a transfer played chunk by chunk, and against the formula of the paper."""

from __future__ import annotations

import random

import pytest

from chitu_like.autoscale.multicast import (
    Fabric,
    Hop,
    Source,
    Spot,
    Way,
    choose_sources,
    plan,
    point_to_point_s,
)
from chitu_like.core.errors import ConfigError

FABRIC = Fabric(lane=10e9, local=100e9, host=2e9, latency_s=1e-4, chunk_bytes=50e6)
GB16 = 16e9


def spot(name: str, machine: str | None = None, num_lanes: int = 1) -> Spot:
    return Spot(name=name, machine=machine or f"m-{name}", num_lanes=num_lanes)


def played(hops: list[Hop], num_bytes: float, slowed: set[str]) -> dict[str, list[float]]:
    """When each chunk reaches each spot, one transfer at a time on every hop."""
    num_chunks = -(-int(num_bytes) // int(FABRIC.chunk_bytes))
    chunk_bytes = num_bytes / num_chunks
    arrivals: dict[str, list[float]] = {}
    for hop in hops:
        if hop.way is Way.CHAIN:
            rate = hop.num_lanes * FABRIC.lane / (2 if hop.source in slowed else 1)
            chunk_s = chunk_bytes / rate + FABRIC.latency_s
        else:
            chunk_s = chunk_bytes / (FABRIC.local if hop.way is Way.LOCAL else FABRIC.host)
        there = arrivals.get(hop.source, [0.0] * num_chunks)
        free_s = 0.0
        arrivals[hop.target] = []
        for at_s in there:
            free_s = max(free_s, at_s) + chunk_s
            arrivals[hop.target].append(free_s)
    return arrivals


@pytest.mark.parametrize("seed", range(40))
def test_the_times_of_a_plan_are_those_of_its_chunks(seed: int):
    rng = random.Random(seed)
    spots = [spot(f"s{i}", f"m{rng.randrange(6)}", rng.choice([1, 2, 4])) for i in range(12)]
    sources = [Source(spot=s, is_sending=rng.random() < 0.5) for s in spots[: rng.randint(0, 3)]]
    targets = spots[3 : 3 + rng.randint(1, 9)]
    hops = plan(GB16, sources, targets, FABRIC)
    assert sorted(hop.target for hop in hops) == sorted(s.name for s in targets)
    slowed = {s.spot.name for s in sources if s.is_sending}
    arrivals = played(hops, GB16, slowed)
    have = {s.spot.name for s in sources}
    for hop in hops:
        assert hop.way is Way.HOST or hop.source in have | set(arrivals)
        assert hop.first_s == pytest.approx(arrivals[hop.target][0])
        assert hop.ready_s == pytest.approx(arrivals[hop.target][-1])


@pytest.mark.parametrize("count", [1, 2, 8, 32])
def test_a_chain_takes_the_time_of_the_formula_and_is_nearly_flat(count: int):
    targets = [spot(f"t{i}") for i in range(count)]
    hops = plan(GB16, [Source(spot=spot("s"))], targets, FABRIC)
    chunk_s = FABRIC.chunk_bytes / FABRIC.lane + FABRIC.latency_s
    num_chunks = GB16 / FABRIC.chunk_bytes
    assert max(hop.ready_s for hop in hops) == pytest.approx((num_chunks + count - 1) * chunk_s)
    if count > 1:
        assert max(hop.ready_s for hop in hops) < point_to_point_s(GB16, count, FABRIC)


def test_lanes_are_striped_and_neighbours_get_chunks_inside_the_machine():
    source = Source(spot=spot("s", num_lanes=4))
    targets = [spot("a", "m", 4), spot("b", "m", 1)]
    a, b = plan(GB16, [source], targets, FABRIC)
    assert (a.target, a.way, a.num_lanes) == ("a", Way.CHAIN, 4)
    assert (b.source, b.target, b.way) == ("a", "b", Way.LOCAL)
    assert a.ready_s == pytest.approx(0.4 + 320 * FABRIC.latency_s)
    assert b.ready_s == pytest.approx(a.ready_s + FABRIC.chunk_bytes / FABRIC.local)


def test_a_neighbour_that_serves_is_asked_before_the_network():
    sources = [
        Source(spot=spot("far", num_lanes=8)),
        Source(spot=spot("near", "m"), is_sending=True),
    ]
    (hop,) = plan(GB16, sources, [spot("t", "m")], FABRIC)
    assert (hop.source, hop.way) == ("near", Way.LOCAL)


def test_weights_flow_against_the_kv_traffic():
    prefill, decode = Source(spot=spot("p", num_lanes=8), is_sending=True), Source(spot=spot("d"))
    assert choose_sources([prefill, decode]) == [decode]
    assert choose_sources([prefill]) == [prefill]
    (hop,) = plan(GB16, [prefill], [spot("t")], FABRIC)
    assert hop.ready_s > 2 * GB16 / FABRIC.lane  # it shares its lanes


def test_several_sources_share_the_machines_and_slow_ones_come_last():
    sources = [Source(spot=spot("a")), Source(spot=spot("b"))]
    targets = [spot("t1"), spot("t2", num_lanes=2), spot("t3"), spot("t4", num_lanes=2)]
    hops = plan(GB16, sources, targets, FABRIC)
    assert [(hop.source, hop.target) for hop in hops] == [
        ("a", "t2"),
        ("t2", "t1"),
        ("b", "t4"),
        ("t4", "t3"),
    ]


def test_without_any_source_machines_load_from_their_hosts():
    hops = plan(GB16, [], [spot("a", "m"), spot("b", "m"), spot("c")], FABRIC)
    assert {hop.way for hop in hops} == {Way.HOST}
    assert [hop.ready_s for hop in hops] == pytest.approx([8.0] * 3)


def test_layers_land_at_an_even_pace():
    (hop,) = plan(GB16, [Source(spot=spot("s"))], [spot("t")], FABRIC)
    shares = [hop.share_ready(hop.ready_s * i / 10) for i in range(12)]
    assert shares == sorted(shares)
    assert shares[0] == 0.0
    assert shares[5] == pytest.approx(0.5, abs=0.01)
    assert shares[10] == shares[11] == 1.0


def test_a_fabric_without_speed_is_refused():
    with pytest.raises(ConfigError, match="lane=0"):
        Fabric(lane=0, local=1.0, host=1.0)
