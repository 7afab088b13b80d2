from __future__ import annotations

import itertools
import random

import pytest
from simulator.simulated import LinearCost, instance_shape, requests_at

from chitu_like.cluster.profile_records import HostCost
from chitu_like.cluster.topology import Link
from chitu_like.core.errors import ConfigError
from chitu_like.simulator.arrivals import arrival_times
from chitu_like.simulator.instance import InstanceShape
from chitu_like.simulator.recorder import FinishedRequest
from chitu_like.simulator.service import simulate
from chitu_like.simulator.workload import PlannedRequest


def answered(requests: list[PlannedRequest], shape: InstanceShape) -> dict[int, FinishedRequest]:
    found: list[FinishedRequest] = []
    simulate(requests, [shape], on_finished=found.append)
    assert len(found) == len(requests)
    return {request.index: request for request in found}


@pytest.mark.parametrize("overlap", [False, True])
def test_a_lone_request_takes_its_prompt_and_a_step_for_each_further_token(overlap: bool) -> None:
    shape = instance_shape(LinearCost(step_s=0.5, prompt_token_s=0.1), overlap=overlap)
    [found] = answered(requests_at([3.0], input_len=10, output_len=5), shape).values()
    assert found.ttft_s == pytest.approx(0.5 + 10 * 0.1)
    assert found.tpot_s == pytest.approx(0.5)
    assert found.e2e_s == pytest.approx(1.5 + 4 * 0.5)


def test_an_answer_that_the_context_ends_has_the_tokens_that_came() -> None:
    shape = InstanceShape(stages=[LinearCost(step_s=1.0)], num_blocks=10, max_seq_len=16)
    [found] = answered(requests_at([0.0], input_len=10, output_len=50), shape).values()
    assert (found.output_len, found.tpot_s) == (6, 1.0)


def test_those_who_come_together_are_prefilled_together() -> None:
    shape = instance_shape(LinearCost(step_s=1.0))
    found = answered(requests_at([0.0] * 8, output_len=3), shape)
    assert {request.finished_s for request in found.values()} == {3.0}


def test_the_host_hides_behind_the_device_when_steps_overlap() -> None:
    cost, host = LinearCost(step_s=1.0), HostCost(step_s=0.25, request_s=0.0)
    plan = requests_at([0.0], output_len=9)
    ends = {}
    for overlap in (False, True):
        shape = InstanceShape(stages=[cost], num_blocks=100, overlap=overlap, host=host)
        ends[overlap] = answered(plan, shape)[0].finished_s
    assert ends == pytest.approx({False: 9 * 1.25, True: 9 + 0.25})


def test_a_host_slower_than_the_device_sets_the_pace() -> None:
    shape = InstanceShape(
        stages=[LinearCost(step_s=0.1)], num_blocks=100, host=HostCost(step_s=1.0, request_s=0.0)
    )
    [found] = answered(requests_at([0.0], output_len=9), shape).values()
    assert found.tpot_s == pytest.approx(1.0)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("num_stages", [2, 4])
def test_stages_compute_different_micro_batches_at_a_time(num_stages: int, overlap: bool) -> None:
    """Every request has a token each time its micro-batch came round; all stages are busy."""
    stages = [LinearCost(step_s=1.0)] * num_stages
    shape = instance_shape(*stages, overlap=overlap, max_reqs=64)
    found = answered(requests_at([0.0] * 8 * num_stages, output_len=50), shape)
    last_s = max(request.finished_s for request in found.values())
    # all requests advance by one token each `num_stages` seconds, once the pipeline is full
    assert last_s == pytest.approx(50 * num_stages, rel=0.15)


def test_a_lone_request_passes_all_stages_and_links_for_each_token() -> None:
    links = [Link(source="a", target="b", bandwidth=100.0, latency_s=0.25)]
    shape = InstanceShape(
        stages=[LinearCost(step_s=1.0), LinearCost(step_s=2.0)],
        num_blocks=100,
        links=links,
        activation_bytes=50.0,
    )
    [found] = answered(requests_at([0.0], input_len=4, output_len=5), shape).values()
    assert found.ttft_s == pytest.approx(3.0 + 0.25 + 4 * 50 / 100)
    assert found.tpot_s == pytest.approx(3.0 + 0.25 + 50 / 100)


def test_one_server_of_constant_time_is_an_m_d_1_queue() -> None:
    """Waiting of M/D/1: rho * s / (2 * (1 - rho)), Pollaczek and Khinchine."""
    service_s, rho = 1.0, 0.7
    times = arrival_times("poisson", rho / service_s, random.Random(11))
    plan = requests_at(list(itertools.islice(times, 20_000)), input_len=1, output_len=1)
    shape = instance_shape(LinearCost(step_s=service_s), max_reqs=1, overlap=False)
    results = simulate(plan, [shape])
    expected = service_s + rho * service_s / (2 * (1 - rho))
    assert results["avg_prompt_latency_s"] == pytest.approx(expected, rel=0.05)
    assert results["utilisation"] == pytest.approx(rho, rel=0.02)
    assert results["avg_running"] == pytest.approx(rho, rel=0.02)
    assert results["avg_waiting"] == pytest.approx(rho**2 / (2 * (1 - rho)), rel=0.1)


def test_blocks_are_in_use_while_a_lone_prompt_is_computed() -> None:
    shape = instance_shape(LinearCost(step_s=1.0), num_blocks=10, enable_prefix_caching=False)
    results = simulate(requests_at([1.0], input_len=16, output_len=1), [shape])
    assert results.nodes["instance0"]["kv_most"] == pytest.approx(0.4)
    assert results.nodes["instance0"]["kv_mean"] == pytest.approx(0.2)
    assert results["avg_running"] == pytest.approx(0.5)


def test_a_link_carries_the_hidden_states_of_one_batch_after_the_other() -> None:
    """Two micro-batches of a decode each over a link that takes 1 s a token: a token a second."""
    links = [Link(source="a", target="b", bandwidth=1.0, latency_s=0.0)]
    shape = InstanceShape(
        stages=[LinearCost(step_s=0.01), LinearCost(step_s=0.01)],
        num_blocks=100,
        max_num_batched_tokens=4,
        links=links,
        activation_bytes=1.0,
    )
    plan = requests_at([0.0] * 4, input_len=4, output_len=40)
    last_s = max(found.finished_s for found in answered(plan, shape).values())
    assert last_s >= 4 * (4 + 39)


def test_what_hash_ids_share_is_not_computed_again() -> None:
    shape = instance_shape(LinearCost(prompt_token_s=1.0), block_size=16)
    plan = [
        PlannedRequest(index=i, arrival_s=5000.0 * i, input_len=1100, output_len=1, hash_ids=ids)
        for i, ids in enumerate([(0, 1, 2), (0, 1, 9), (7, 1, 2), (0, 1, 2)])
    ]
    found = answered(plan, shape)
    assert [found[i].num_cached_tokens for i in range(4)] == [0, 1024, 0, 1088]
    assert [found[i].ttft_s for i in range(4)] == [1100, 76, 1100, 12]


def test_swapped_requests_take_the_time_of_their_copies() -> None:
    """Room for one and a half: one is preempted, to the host or to be computed again."""
    costs = {"step_s": 1.0, "prompt_token_s": 1.0}
    plan = requests_at([0.0, 0.0], input_len=4, output_len=20)
    ends = {}
    for num_host_blocks, copy_s in ((0, 0.0), (100, 0.0), (100, 3.0)):
        shape = instance_shape(
            LinearCost(**costs),
            num_blocks=9,
            overlap=False,
            num_host_blocks=num_host_blocks,
            block_copy_s=copy_s,
            enable_prefix_caching=False,
        )
        found = answered(plan, shape)
        ends[num_host_blocks, copy_s] = max(request.finished_s for request in found.values())
    assert ends[100, 0.0] < ends[0, 0.0], "recomputing costs its tokens again"
    num_copies = (ends[100, 3.0] - ends[100, 0.0]) / 3.0
    assert num_copies == pytest.approx(round(num_copies))
    assert num_copies >= 2


def test_an_instance_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_reqs=0"):
        instance_shape(max_reqs=0)
    with pytest.raises(ConfigError, match="one stage"):
        InstanceShape(stages=(), num_blocks=1)
