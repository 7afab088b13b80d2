"""More and fewer instances while a trace runs: by hand, by comparison, and nothing lost on the way."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from simulator.simulated import LinearCost, instance_shape, requests_at

from chitu_like.autoscale.live import ZigZag
from chitu_like.autoscale.multicast import Fabric, Spot
from chitu_like.autoscale.policy import Band, ScalingPolicy
from chitu_like.cluster.cost_model import BatchShape
from chitu_like.cluster.topology import Link
from chitu_like.core.errors import ConfigError
from chitu_like.disagg.handoff import Phase
from chitu_like.simulator.clock import VirtualClock
from chitu_like.simulator.disagg import Crossing, SplitService, simulate_split
from chitu_like.simulator.live_step import HelpedStep
from chitu_like.simulator.recorder import FinishedRequest, Recorder
from chitu_like.simulator.results import Results
from chitu_like.simulator.scaling import Elasticity, ScalingLoop, simulate_scaling
from chitu_like.simulator.service import Failure
from chitu_like.simulator.workload import PlannedRequest

CROSSING = Crossing(link=Link(source="any", target="other", bandwidth=1e10), kv_bytes_per_token=1e5)
COST = LinearCost(step_s=0.01, prompt_token_s=1e-3)
POLICY = ScalingPolicy(
    prefill_tokens_per_s=1000.0,
    decode_kv_tokens=4000.0,
    prefill_wait_s=Band(low=0.2, high=0.5),
)
ELASTICITY = Elasticity(
    shape=instance_shape(COST, enable_prefix_caching=False),
    spots=[Spot(name=f"s{i}", machine=f"m{i}") for i in range(8)],
    fabric=Fabric(lane=1e10, local=1e11, host=1e9),
    weight_bytes=1e10,
    policy=POLICY,
    tick_s=0.25,
    window_s=3.0,
    keep_s=5.0,
)


def burst(seed: int = 0) -> list[PlannedRequest]:
    """Five quiet seconds, five in which one prefill instance would need fifteen, ten quiet ones."""
    rng = random.Random(seed)
    times = [
        *(rng.uniform(0, 5) for _ in range(20)),
        *(rng.uniform(5, 10) for _ in range(150)),
        *(rng.uniform(10, 40) for _ in range(60)),
    ]
    return requests_at(sorted(times), input_len=100, output_len=8)


def run(
    elasticity: Elasticity = ELASTICITY, seed: int = 0
) -> tuple[Results, list[FinishedRequest]]:
    found: list[FinishedRequest] = []
    results = simulate_scaling(burst(seed), elasticity, CROSSING, on_finished=found.append)
    return results, found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("is_live", [False, True])
def test_every_request_is_answered_in_full(seed: int, is_live: bool):
    results, found = run(replace(ELASTICITY, is_live=is_live), seed)
    assert sorted(r.index for r in found) == list(range(230))
    assert results["num_failed"] == results["num_refused"] == 0


def test_the_same_trace_gives_the_same_results_to_the_last_bit():
    assert run()[0] == run()[0]


def test_a_burst_is_met_and_what_it_took_is_given_back():
    results, _ = run()
    counts = results.timeline["prefill_instances"]
    assert max(counts) > 4
    assert counts[-1] < 2
    fixed = simulate_split(burst(), [ELASTICITY.shape], [ELASTICITY.shape], CROSSING)
    many = simulate_split(burst(), [ELASTICITY.shape] * 7, [ELASTICITY.shape], CROSSING)
    assert results["ttft_p90_s"] < 0.5 * fixed["ttft_p90_s"]
    assert results["gpu_seconds"] < 0.8 * many["gpu_seconds"]


def test_live_scaling_helps_while_weights_are_on_their_way():
    slow = replace(ELASTICITY, weight_bytes=5e10)  # five seconds
    live, _ = run(replace(slow, is_live=True))
    stopped, _ = run(slow)
    assert live["avg_prompt_latency_s"] < 0.9 * stopped["avg_prompt_latency_s"]


def test_slower_networks_make_users_wait_longer():
    fast, _ = run()
    slow, _ = run(replace(ELASTICITY, fabric=Fabric(lane=2e9, local=1e11, host=1e9)))
    assert slow["ttft_p90_s"] > fast["ttft_p90_s"]


def test_decode_need_is_met_by_flipping_a_prefill_instance_at_once():
    """Long answers fill the decode side; loading takes for ever, so only a flip can help."""
    plan = requests_at([0.1 * i for i in range(60)], input_len=40, output_len=300)
    shape = instance_shape(LinearCost(step_s=0.01), num_blocks=1200, enable_prefix_caching=False)
    elasticity = replace(
        ELASTICITY, shape=shape, num_prefill=3, weight_bytes=1e15, spots=ELASTICITY.spots[:4]
    )
    found: list[FinishedRequest] = []
    simulate_scaling(plan, elasticity, CROSSING, on_finished=found.append)
    assert len(found) == 60
    places = {request.place for request in found}
    assert "s3" in places
    assert places & {"s0", "s1", "s2"}


@pytest.mark.parametrize("is_live", [False, True])
@pytest.mark.parametrize("lost", [[0], [1], [0, 1], [2, 3]])
def test_lost_spots_are_replaced_and_nothing_else_is_lost(lost: list[int], is_live: bool):
    """Also the only instance of a role, and one that others get their weights through."""
    found: list[FinishedRequest] = []
    slow = replace(ELASTICITY, is_live=is_live, weight_bytes=2e10)
    results = simulate_scaling(
        burst(),
        slow,
        CROSSING,
        failures=[Failure(time_s=7.0, instance=number) for number in lost],
        on_finished=found.append,
    )
    assert len(found) + results["num_failed"] == 230
    assert len(found) > 150
    late = [request for request in found if request.arrival_s > 12.0]
    assert len(late) > 40
    assert not {request.place for request in late} & {f"s{number}" for number in lost}


def test_a_request_on_its_way_is_counted_where_its_blocks_are_and_nowhere_else():
    slow = replace(CROSSING, link=Link(source="any", target="other", bandwidth=1e3))
    clock = VirtualClock()
    recorder = Recorder(clock)
    service = SplitService(clock, recorder, slow)
    loop = ScalingLoop(clock, recorder, service, ELASTICITY)
    (request,) = requests_at([0.0], input_len=100, output_len=8)
    service.submit(request)
    clock.run(5.0)
    assert service.coordinator.count(Phase.PULL) == 1
    signals = loop._signals()
    block_size = ELASTICITY.shape.block_size
    assert signals.used_kv_tokens == -(-101 // block_size) * block_size
    assert signals.migrating_tokens == signals.waiting_prefill_tokens == 0


def test_who_got_weights_through_a_lost_spot_begins_anew():
    """A chain s0 -> s2 -> s3 -> ...: when s2 is lost, s3 gets them from s0 or s1 from the beginning."""
    slow = replace(ELASTICITY, weight_bytes=3e10)  # three seconds
    found: list[FinishedRequest] = []
    failure = Failure(time_s=6.5, instance=2)
    whole = simulate_scaling(burst(), slow, CROSSING)
    broken = simulate_scaling(burst(), slow, CROSSING, failures=[failure], on_finished=found.append)
    assert len(found) == 230
    assert broken["avg_prompt_latency_s"] > whole["avg_prompt_latency_s"]


def test_what_does_not_fit_is_one_line():
    with pytest.raises(ConfigError, match="5 prefill and 4 decode instances do not fit on 8 spots"):
        replace(ELASTICITY, num_prefill=5, num_decode=4)
    with pytest.raises(ConfigError, match="tick_s=0"):
        replace(ELASTICITY, tick_s=0)


@pytest.mark.parametrize("num_ready", [1, 2, 4, 6, 8])
def test_the_rate_of_a_helped_step_is_that_of_zigzag(num_ready: int):
    """A full queue, a second a layer: how many batches come through in the real order of things."""
    clock, num_layers = VirtualClock(), 8
    queue: ZigZag[object] = ZigZag(num_layers)
    queue.land(num_ready)
    done = 0

    def old() -> None:
        nonlocal done
        while len(queue) < 20:
            queue.add(object())
        found = queue.next_for_old()
        assert found is not None
        done += 1
        clock.after(float(len(found[1])), old)

    def new() -> None:
        found = queue.next_for_new()
        if found is None:
            clock.after(0.25, new)
            return
        batch, layers = found

        def through() -> None:
            nonlocal done
            done += queue.computed(batch, layers)
            new()

        clock.after(float(len(layers)), through)

    old()
    clock.at(0.0, new)
    clock.run(8000.0)
    step = HelpedStep(LinearCost(step_s=8.0))
    step.share_ready = lambda: num_ready / num_layers
    assert done == pytest.approx(8000.0 / step.seconds(BatchShape()), rel=0.1)
