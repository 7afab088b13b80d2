"""24 machines of three kinds: fast enough to search with, in memory that does not grow."""

from __future__ import annotations

import itertools
import random
import time
import tracemalloc
from collections.abc import Iterator

import pytest
from layer_cluster import StraightTimes, cluster_of, model_of, placement_of

from chitu_like.cluster.cluster_file import find_cluster, read_cluster
from chitu_like.cluster.profile import find_profile
from chitu_like.cluster.topology import SINK, SOURCE
from chitu_like.planner.flow_graph import evaluate
from chitu_like.planner.heuristics import swarm
from chitu_like.planner.throughput import TypicalLoad, node_throughput
from chitu_like.simulator.layer_service import simulate_layers
from chitu_like.simulator.workload import PlannedRequest

MODEL = "llama2_70b"


def endless(mean_input: float, mean_output: float) -> Iterator[PlannedRequest]:
    chance = random.Random(0)
    for index in itertools.count():
        yield PlannedRequest(
            index=index,
            arrival_s=0.0,
            input_len=min(2048, 1 + int(chance.expovariate(1 / mean_input))),
            output_len=min(1024, 1 + int(chance.expovariate(1 / mean_output))),
        )


@pytest.mark.slow
def test_740_seconds_of_24_machines_take_less_than_a_minute() -> None:
    cluster, profile = read_cluster(find_cluster("mixed-24")), find_profile("roofline")
    model = profile.model(MODEL)
    times = profile.layer_times_of(MODEL, {node.device for node in cluster.nodes})
    throughput = node_throughput(cluster, model, times, TypicalLoad())
    placement = swarm(cluster, throughput)
    flow = evaluate(cluster, model, throughput, placement)
    start_s = time.process_time()
    results = simulate_layers(
        cluster,
        model,
        times,
        placement,
        flow.link_flow,
        endless(750, 240),
        warmup_s=60.0,
        duration_s=680.0,
    )
    assert time.process_time() - start_s < 60
    assert results["elapsed_s"] == pytest.approx(680)
    # The flow is an estimate, of a fixed share of KV memory in use: not far from what is served.
    assert 0.7 < results["total_tokens_per_s"] / flow.max_flow < 1.3


def test_memory_does_not_grow_with_simulated_time() -> None:
    times = StraightTimes(
        prompt_token_s=1e-4, decode_base_s=0.1, decode_token_s=1e-4, num_kv_tokens=2000
    )

    def most_bytes(duration_s: float) -> int:
        tracemalloc.start()
        simulate_layers(
            cluster_of(["a", "b"], latency_s=1e-3, bandwidth=1e6),
            model_of(4),
            {"toy": times},
            placement_of(4, a=(0, 2), b=(2, 4)),
            {(SOURCE, "a"): 1.0, ("a", "b"): 1.0, ("b", SINK): 1.0},
            (
                PlannedRequest(index=i, arrival_s=0, input_len=60, output_len=9)
                for i in itertools.count()
            ),
            warmup_s=1.0,
            duration_s=duration_s,
        )
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    # After a minute every bin of the timeline is in use.
    assert most_bytes(240.0) < 1.1 * most_bytes(60.0)
