"""Prefill and decode apart: times by hand, nothing lost, and what makes it worth while."""

from __future__ import annotations

import random

import pytest
from simulator.simulated import LinearCost, instance_shape, requests_at

from chitu_like.cluster.topology import Link
from chitu_like.core.errors import ConfigError
from chitu_like.disagg.handoff import Leases
from chitu_like.simulator.arrivals import arrival_times
from chitu_like.simulator.disagg import Crossing, simulate_split
from chitu_like.simulator.recorder import FinishedRequest
from chitu_like.simulator.results import Slo
from chitu_like.simulator.service import Failure, simulate
from chitu_like.simulator.workload import PlannedRequest, drawn, plan_requests

LINK = Link(source="any", target="other", bandwidth=1e9, latency_s=0.001)
CROSSING = Crossing(link=LINK, kv_bytes_per_token=1e6)
COST = LinearCost(step_s=0.01, prompt_token_s=1e-3)


def mixed(count: int, rate: float, seed: int = 0) -> list[PlannedRequest]:
    rng = random.Random(seed)
    lengths = drawn([(40, 10), (5, 30), (200, 3), (7, 1)], rng)
    times = arrival_times("poisson", rate, rng)
    return list(plan_requests(times, lengths, count=count, duration_s=None))


def test_the_times_of_one_request_by_hand():
    found: list[FinishedRequest] = []
    shape = instance_shape(COST, overlap=False)
    results = simulate_split(
        requests_at([1.0], input_len=10, output_len=5),
        [shape],
        [shape],
        CROSSING,
        on_finished=found.append,
    )
    (request,) = found
    assert request.first_token_s == pytest.approx(1.0 + 0.01 + 10 * 1e-3)
    copy_s = 0.001 + 3 * 4 * 1e6 / 1e9  # 3 blocks of 4 tokens
    assert request.finished_s == pytest.approx(request.first_token_s + copy_s + 4 * 0.01)
    assert request.place == "decode0"
    link = results.links["prefill0 -> decode0"]
    assert link["bytes_per_s"] == pytest.approx(12e6 / results["elapsed_s"])


def test_copies_between_two_instances_follow_each_other():
    found: list[FinishedRequest] = []
    shape = instance_shape(LinearCost(step_s=0.01), overlap=False, enable_prefix_caching=False)
    slow = Crossing(link=Link(source="a", target="b", bandwidth=12e6), kv_bytes_per_token=1e6)
    simulate_split(
        requests_at([0.0] * 3, input_len=10, output_len=2),
        [shape],
        [shape],
        slow,
        on_finished=found.append,
    )  # each copy takes a second
    assert [r.first_token_s for r in found] == pytest.approx([0.01] * 3)
    assert [r.finished_s for r in found] == pytest.approx([1.02, 2.02, 3.02])


@pytest.mark.parametrize("num_blocks", [60, 1000])
@pytest.mark.parametrize("num_host_blocks", [0, 100])
def test_every_request_is_answered_in_full(num_blocks: int, num_host_blocks: int):
    plan, found = mixed(200, 30.0), list[FinishedRequest]()
    shape = instance_shape(num_blocks=num_blocks, num_host_blocks=num_host_blocks)
    results = simulate_split(plan, [shape] * 2, [shape] * 2, CROSSING, on_finished=found.append)
    assert sorted(r.index for r in found) == list(range(200))
    num_output = sum(r.output_len for r in plan)
    assert results["decode_tokens_per_s"] * results["elapsed_s"] == pytest.approx(num_output)
    assert results["gpu_seconds"] == pytest.approx(4 * results["elapsed_s"])
    assert {r.place for r in found if r.output_len == 1} <= {"prefill0", "prefill1"}
    assert {r.place for r in found if r.output_len > 1} == {"decode0", "decode1"}


def test_the_same_seed_gives_the_same_results_to_the_last_bit():
    shape = instance_shape(num_blocks=80)
    runs = [simulate_split(mixed(150, 40.0), [shape] * 2, [shape], CROSSING) for _ in range(2)]
    assert runs[0] == runs[1]


def test_a_slow_decode_side_is_felt_by_prefill():
    """Prefill is fast; its blocks fill up with what is not pulled, so later prompts wait longer."""

    def ttft(num_prefill_blocks: int) -> float:
        return simulate_split(
            requests_at([0.001 * i for i in range(40)], input_len=40, output_len=20),
            [instance_shape(num_blocks=num_prefill_blocks, enable_prefix_caching=False)],
            [instance_shape(num_blocks=60, enable_prefix_caching=False)],
            CROSSING,
        )["ttft_p90_s"]

    assert ttft(40) > 3 * ttft(1000)


def test_decodes_are_not_held_up_by_prompts():
    """What DistServe is for: with prompts elsewhere a token takes a step, however many come."""
    plan, slo = mixed(400, 25.0), Slo(tpot_s=0.02)
    shape = instance_shape(LinearCost(step_s=0.01, prompt_token_s=5e-4))
    fast = Crossing(link=LINK, kv_bytes_per_token=1e3)
    apart = simulate_split(plan, [shape], [shape], fast, slo=slo)
    together = simulate(plan, [shape] * 2, slo=slo)
    assert apart["tpot_attainment"] > together["tpot_attainment"]


def test_a_lost_decode_instance_takes_only_what_it_decodes():
    plan, found = mixed(120, 40.0), list[FinishedRequest]()
    results = simulate_split(
        plan,
        [instance_shape()],
        [instance_shape()] * 2,
        CROSSING,
        failures=[Failure(time_s=1.0, instance=1)],
        on_finished=found.append,
    )
    assert results["num_failed"] > 0
    assert len(found) + results["num_failed"] == 120
    assert all(r.place != "decode0" for r in found if r.finished_s > 1.0)


def test_a_lost_prefill_instance_takes_what_was_not_pulled():
    found: list[FinishedRequest] = []
    results = simulate_split(
        mixed(120, 40.0),
        [instance_shape()] * 2,
        [instance_shape()],
        CROSSING,
        failures=[Failure(time_s=1.0, instance=0)],
        on_finished=found.append,
    )
    assert len(found) + results["num_failed"] == 120
    assert 0 < results["num_failed"] < 60


def test_without_any_decode_instance_leases_end():
    leases = Leases(bridge_s=5.0)
    results = simulate_split(
        requests_at([0.0] * 5),
        [instance_shape()],
        [instance_shape()],
        Crossing(link=LINK, kv_bytes_per_token=1e6, leases=leases),
        failures=[Failure(time_s=0.0, instance=1)],
    )
    assert results["num_failed"] == 5
    assert results["elapsed_s"] < 7.0


def test_what_cannot_be_split_is_one_line():
    shape = instance_shape()
    with pytest.raises(ConfigError, match="one prefill and one decode"):
        simulate_split([], [shape], [], CROSSING)
    with pytest.raises(ConfigError, match="decode0: blocks of 8 tokens, prefill0 has 4"):
        simulate_split([], [shape], [instance_shape(block_size=8)], CROSSING)
