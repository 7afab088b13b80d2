"""Nodes with layers as a service: exact times, nothing lost, shares of the flow, the same seed the same."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator

import pytest
from layer_cluster import StraightTimes, cluster_of, model_of, placement_of, requests_of

from chitu_like.cluster.cost_model import LayerTimes
from chitu_like.cluster.topology import SINK, SOURCE, Cluster, Link, Node
from chitu_like.core.errors import CapacityError, ConfigError
from chitu_like.router.flow_routing import ROUTER_NAMES
from chitu_like.simulator.layer_nodes import COPY_S_PER_BYTE
from chitu_like.simulator.layer_service import simulate_layers
from chitu_like.simulator.recorder import FinishedRequest
from chitu_like.simulator.results import Results
from chitu_like.simulator.workload import PlannedRequest

# Two ways through eight layers: a or b, then c or d.
NAMES = ("a", "b", "c", "d")
PLACEMENT = placement_of(8, a=(0, 4), b=(0, 4), c=(4, 8), d=(4, 8))
FLOW = {
    (SOURCE, "a"): 3.0,
    (SOURCE, "b"): 1.0,
    ("a", "c"): 1.0,
    ("a", "d"): 2.0,
    ("b", "c"): 1.0,
    ("c", SINK): 2.0,
    ("d", SINK): 2.0,
}
FAST = StraightTimes(
    prompt_token_s=1e-5,
    decode_base_s=1e-3,
    decode_token_s=1e-4,
    num_kv_tokens=3000,
    num_prompts=64,
    num_decodes=64,
)


def endless(seed: int, rate: float) -> Iterator[PlannedRequest]:
    chance, arrival_s = random.Random(seed), 0.0
    for index in itertools.count():
        arrival_s += chance.expovariate(rate)
        yield PlannedRequest(
            index=index,
            arrival_s=arrival_s,
            input_len=chance.randint(1, 200),
            output_len=chance.randint(1, 30),
        )


def play(
    router: str = "maxflow", *, seed: int = 0, duration_s: float = 10.0, **options: object
) -> tuple[Results, list[FinishedRequest]]:
    rows: list[FinishedRequest] = []
    results = simulate_layers(
        cluster_of(NAMES, latency_s=1e-3, bandwidth=1e6),
        model_of(8),
        {"toy": FAST},
        PLACEMENT,
        FLOW,
        endless(seed, rate=20.0),
        router=router,
        warmup_s=0.0,
        duration_s=duration_s,
        seed=seed,
        on_finished=rows.append,
        **options,  # type: ignore[arg-type]
    )
    return results, rows


def test_one_node_takes_the_time_added_up_by_hand() -> None:
    rows: list[FinishedRequest] = []
    results = simulate_layers(
        cluster_of(["a"]),
        model_of(4),
        {"toy": StraightTimes()},
        placement_of(4, a=(0, 4)),
        {(SOURCE, "a"): 1.0, ("a", SINK): 1.0},
        requests_of((32, 3)),
        warmup_s=0.0,
        duration_s=100.0,
        on_finished=rows.append,
    )
    load_s = 4 * 8 / 16  # layers, bytes of one, bytes/s of the disk
    there, back = 1 / 16 + 2 * 32 / 64, 1 / 16 + 2 / 64
    first_s = load_s + there + 2 * 32 * COPY_S_PER_BYTE + 4 * 32 / 64 + back
    decode_s = 2 * (1 / 16 + 2 / 64) + 2 * COPY_S_PER_BYTE + 4 * 2 * (1 / 8 + 1 / 32)
    (row,) = rows
    assert (row.arrival_s, row.place) == (load_s, "a")
    assert row.first_token_s == pytest.approx(first_s, rel=1e-12)
    assert row.finished_s == pytest.approx(first_s + 2 * decode_s, rel=1e-12)
    assert results["load_s"] == load_s
    assert results["avg_prompt_latency_s"] == pytest.approx(first_s - load_s)
    assert results["avg_decode_latency_s"] == pytest.approx(decode_s)


def test_two_nodes_pass_activations_on_and_the_second_runs_what_is_left() -> None:
    rows: list[FinishedRequest] = []
    results = simulate_layers(
        cluster_of(["a", "b"]),
        model_of(6),
        {"toy": StraightTimes()},
        placement_of(6, a=(0, 4), b=(2, 6)),  # of which b runs 4 and 5
        {(SOURCE, "a"): 1.0, ("a", "b"): 1.0, ("b", SINK): 1.0},
        requests_of((32, 2), (32, 1)),
        mode="online",
        warmup_s=0.0,
        duration_s=100.0,
        on_finished=rows.append,
    )
    in_s, between_s, out_s = 1 / 16 + 1, 1 / 16 + 32 * 16 / 64, 1 / 16 + 2 / 64
    ids_s, activations_s = 64 * COPY_S_PER_BYTE, 512 * COPY_S_PER_BYTE
    a_s, b_s = ids_s + 4 * 32 / 64, activations_s + 2 * 32 / 64
    # a computes for 2 s, so the second, half as long behind on the wire, waits for the first there.
    first_at_b = 2.0 + in_s + a_s + between_s
    second_leaves_a = 2.0 + in_s + 2 * a_s
    second_at_b = max(first_at_b, second_leaves_a) + between_s
    by_index = {row.index: row for row in rows}
    assert by_index[0].first_token_s == pytest.approx(first_at_b + b_s + out_s, rel=1e-12)
    decode_in, decode_between = 1 / 16 + 2 / 64, 1 / 16 + 16 / 64
    a_decode = 2 * COPY_S_PER_BYTE + 4 * 2 * (1 / 8 + 1 / 32)
    b_decode = 16 * COPY_S_PER_BYTE + 2 * 2 * (1 / 8 + 1 / 32)
    # Its decode waits behind the second prompt on the wire, then behind it at b.
    decode_at_a = by_index[0].first_token_s + decode_in
    decode_at_b = max(decode_at_a + a_decode, second_at_b) + decode_between
    second_through = second_at_b + b_s
    assert by_index[1].finished_s == pytest.approx(second_through + out_s, rel=1e-12)
    finished_s = max(decode_at_b, second_through) + b_decode + out_s
    assert by_index[0].finished_s == pytest.approx(finished_s, rel=1e-12)
    assert results["num_finished"] == 2


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_prompts_one_by_one_wait_as_long_as_queueing_theory_says(load: float) -> None:
    prompt_s = 0.5  # of 32 tokens; M/D/1: Poisson arrivals, constant service
    chance = random.Random(1)
    arrivals = itertools.accumulate(chance.expovariate(load / prompt_s) for _ in range(20_000))
    links = (
        Link(source=SOURCE, target="a", bandwidth=1e12),
        Link(source="a", target=SINK, bandwidth=1e12),
    )
    results = simulate_layers(
        Cluster((Node(name="a", device="toy", memory_bytes=1.0),), links),
        model_of(1),
        {"toy": StraightTimes(num_prompts=1)},
        placement_of(1, a=(0, 1)),
        {(SOURCE, "a"): 1.0, ("a", SINK): 1.0},
        (
            PlannedRequest(index=i, arrival_s=arrival_s, input_len=32, output_len=1)
            for i, arrival_s in enumerate(arrivals)
        ),
        mode="online",
        warmup_s=0.0,
        duration_s=1e6,
    )
    expected_s = prompt_s + load * prompt_s / (2 * (1 - load))  # Pollaczek and Khinchine
    assert results["num_finished"] == 20_000
    assert results["avg_prompt_latency_s"] == pytest.approx(expected_s, rel=0.03)
    assert results.nodes["a"]["utilisation"] == pytest.approx(load, rel=0.02)
    assert results["avg_running"] + results["avg_waiting"] == pytest.approx(
        load / prompt_s * expected_s, rel=0.04
    )  # Little


@pytest.mark.parametrize("router", ROUTER_NAMES)
@pytest.mark.parametrize("mode", ["offline", "online"])
def test_every_request_is_answered_once_and_leaves_no_keys_behind(router: str, mode: str) -> None:
    rows: list[FinishedRequest] = []
    requests = list(itertools.islice(endless(3, rate=20.0), 200))
    results = simulate_layers(
        cluster_of(NAMES, latency_s=1e-3, bandwidth=1e6),
        model_of(8),
        {"toy": FAST},
        PLACEMENT,
        FLOW,
        requests,
        router=router,
        mode=mode,  # type: ignore[arg-type]
        warmup_s=0.0,
        duration_s=1e6,  # it ends when nothing is left
        on_finished=rows.append,
    )
    assert sorted(row.index for row in rows) == list(range(200))
    assert all(row.output_len == requests[row.index].output_len for row in rows)
    assert all(row.arrival_s < row.first_token_s <= row.finished_s for row in rows)
    num_output = sum(request.output_len for request in requests)
    elapsed_s = results["elapsed_s"]
    assert elapsed_s < 1000
    assert results["decode_tokens_per_s"] * elapsed_s == pytest.approx(num_output)
    num_input = sum(request.input_len for request in requests)
    assert results["total_tokens_per_s"] * elapsed_s == pytest.approx(num_input + num_output)
    kv_at_the_end = {name: results.timeline.get(f"{name}.kv", [0.0])[-1] for name in NAMES}
    assert kv_at_the_end == dict.fromkeys(NAMES, 0.0)
    assert any(results.nodes[name]["kv_most"] for name in NAMES)


def test_requests_follow_the_flow() -> None:
    _, rows = play(mode="online", duration_s=60.0)  # offline KV memory binds, which is alike here
    tokens: Counter[str] = Counter()
    for row in rows:
        tokens[row.place] += row.input_len + row.output_len
    total = sum(tokens.values())
    assert len(rows) > 1000
    shares = {place: 4 * n / total for place, n in tokens.items()}
    assert shares == pytest.approx({"a c": 1.0, "a d": 2.0, "b c": 1.0}, rel=0.05)


@pytest.mark.parametrize("router", ROUTER_NAMES)
@pytest.mark.parametrize("mode", ["offline", "online"])
def test_the_same_seed_gives_the_same_results(router: str, mode: str) -> None:
    first, again = (play(router, seed=4, mode=mode, duration_s=5.0) for _ in range(2))
    assert first[0].as_json() == again[0].as_json()
    assert first[1] == again[1]
    assert first[1]


def test_another_seed_draws_other_ways() -> None:
    ways = [[row.place for row in play("random", seed=seed)[1]] for seed in (1, 2)]
    assert ways[0] != ways[1]


def test_what_nodes_and_links_do_adds_up() -> None:
    results, _ = play()
    for found in (*results.nodes.values(), *results.links.values()):
        utilisation = found["utilisation"]
        assert utilisation is not None
        assert 0.0 < utilisation <= 1.0
    arrived, left = (
        sum(results.links[name]["bytes_per_s"] or 0.0 for name in names)
        for names in (["a -> c", "a -> d", "b -> c"], ["c -> sink", "d -> sink"])
    )
    # 16 bytes a token between nodes, 2 bytes a token to the sink, where a prompt is one token.
    assert left / 2 == pytest.approx(results["decode_tokens_per_s"], rel=0.02)
    num_decodes = results["decode_tokens_per_s"] - results["requests_per_s"]
    num_computed = results["prompt_tokens_per_s"] + num_decodes
    assert arrived / 16 == pytest.approx(num_computed, rel=0.05)


def test_nothing_of_the_warm_up_is_counted() -> None:
    whole, _ = play(duration_s=10.0)
    seen: list[float] = []
    late = simulate_layers(
        cluster_of(NAMES, latency_s=1e-3, bandwidth=1e6),
        model_of(8),
        {"toy": FAST},
        PLACEMENT,
        FLOW,
        endless(0, rate=20.0),
        warmup_s=5.25,
        duration_s=4.75,
        watch=lambda now_s, _: seen.append(now_s),
    )
    assert late["elapsed_s"] == 4.75
    assert late["num_finished"] < whole["num_finished"]
    assert late.nodes["a"]["utilisation"] == pytest.approx(whole.nodes["a"]["utilisation"], rel=0.1)
    assert late.links["a -> c"]["bytes_per_s"] == pytest.approx(
        whole.links["a -> c"]["bytes_per_s"], rel=0.1
    )
    assert seen[:2] == [3.0, 4.0]  # 2 s of loading, then every second
    assert seen[-1] == 12.0


def test_estimated_kv_memory_holds_offline() -> None:
    times = StraightTimes(**{**vars(FAST), "num_kv_tokens": 1500})
    rows: list[FinishedRequest] = []
    requests = [
        PlannedRequest(index=i, arrival_s=0, input_len=90, output_len=10) for i in range(300)
    ]
    results = simulate_layers(
        cluster_of(NAMES, latency_s=1e-3, bandwidth=1e6),
        model_of(8),
        {"toy": times},
        PLACEMENT,
        FLOW,
        requests,
        warmup_s=0.0,
        duration_s=1e5,
        on_finished=rows.append,
    )
    assert len(rows) == 300
    most = max(results.nodes[name]["kv_most"] or 0.0 for name in NAMES)
    assert 0.3 < most <= 0.85


def errors() -> Iterator[tuple[str, dict[str, object]]]:
    yield (
        "no node holds layer 4 (4 of 8 layers",
        {"placement": placement_of(8, a=(0, 4), b=(0, 4))},
    )
    yield "placement names node z", {"placement": placement_of(8, a=(0, 4), z=(4, 8))}
    yield "placement is of 6 layers, toy has 8", {"placement": placement_of(6, a=(0, 6))}
    yield "node a: the profile has no times of toy, only of A100", {"layer_times": {"A100": FAST}}
    small: dict[str, LayerTimes] = {"toy": StraightTimes(max_layers=3)}
    yield "node a holds 4 layers of toy: toy has room for 3", {"layer_times": small}
    full: dict[str, LayerTimes] = {"toy": StraightTimes(num_kv_tokens=0)}
    yield "node a holds 4 layers of toy: toy has no room for keys", {"layer_times": full}
    yield "flow c -> a: the layers there do not follow", {"flow": {**FLOW, ("c", "a"): 1.0}}
    yield "flow a -> sink: the layers there do not follow", {"flow": {**FLOW, ("a", SINK): 1.0}}
    yield "no way leads through all 8 layers", {"flow": {}}
    yield "the workload holds no requests", {"requests": []}
    yield "simulate.mode=lazy: use offline or online", {"mode": "lazy"}
    yield "simulate.router=best: use one of maxflow", {"router": "best"}


@pytest.mark.parametrize(("message", "change"), list(errors()), ids=lambda x: str(x)[:40])
def test_what_cannot_be_simulated_is_told_in_one_line(
    message: str, change: dict[str, object]
) -> None:
    options: dict[str, object] = {
        "cluster": cluster_of(NAMES),
        "model": model_of(8),
        "layer_times": {"toy": FAST},
        "placement": PLACEMENT,
        "flow": FLOW,
        "requests": requests_of((1, 1)),
    }
    with pytest.raises(ConfigError) as raised:
        simulate_layers(**{**options, **change})  # type: ignore[arg-type]
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_flow_without_a_link_is_told_in_one_line() -> None:
    cluster = cluster_of(NAMES)
    links = tuple(link for link in cluster.links if (link.source, link.target) != ("b", "c"))
    with pytest.raises(ConfigError, match="flow b -> c: the cluster has no such link"):
        simulate_layers(
            Cluster(cluster.nodes, links),
            model_of(8),
            {"toy": FAST},
            PLACEMENT,
            FLOW,
            requests_of((1, 1)),
        )


def test_a_request_that_never_fits_is_told_in_one_line() -> None:
    times = StraightTimes(**{**vars(FAST), "num_kv_tokens": 100})
    with pytest.raises(CapacityError, match="a prompt of 90 tokens"):
        simulate_layers(
            cluster_of(NAMES), model_of(8), {"toy": times}, PLACEMENT, FLOW, requests_of((90, 10))
        )


def test_network_cards_bound_what_a_link_carries() -> None:
    slow = Node(name="a", device="toy", memory_bytes=1.0, disk=16.0, nic_in=1.0, nic_out=2.0)
    links = (
        Link(source=SOURCE, target="a", bandwidth=64.0),
        Link(source="a", target=SINK, bandwidth=64.0),
    )
    rows: list[FinishedRequest] = []
    simulate_layers(
        Cluster((slow,), links),
        model_of(4),
        {"toy": StraightTimes()},
        placement_of(4, a=(0, 4)),
        {(SOURCE, "a"): 1.0, ("a", SINK): 1.0},
        requests_of((32, 1)),
        on_finished=rows.append,
    )
    assert rows[0].e2e_s == pytest.approx(64 / 1.0 + 64 * COPY_S_PER_BYTE + 2.0 + 2 / 2.0)
