from __future__ import annotations

import csv
import itertools
import random
import tracemalloc
from pathlib import Path

import pytest
from simulator.simulated import LinearCost, instance_shape, requests_at

from chitu_like.core.errors import ConfigError
from chitu_like.router.admission import QueueBounds
from chitu_like.simulator.arrivals import arrival_times
from chitu_like.simulator.recorder import FinishedRequest
from chitu_like.simulator.request_log import RequestLog
from chitu_like.simulator.results import Results, Slo
from chitu_like.simulator.service import Failure, simulate
from chitu_like.simulator.workload import PlannedRequest, drawn, plan_requests

SLOW = LinearCost(step_s=1.0)


def mixed(count: int, rate: float = 20.0, seed: int = 0) -> list[PlannedRequest]:
    rng = random.Random(seed)
    lengths = drawn([(40, 10), (5, 30), (200, 3)], rng)
    times = arrival_times("poisson", rate, rng)
    return list(plan_requests(times, lengths, count=count, duration_s=None))


@pytest.mark.parametrize("policy", ["least_loaded", "round_robin", "power_of_two", "prefix_aware"])
def test_every_request_is_answered_in_full_by_one_of_the_replicas(policy: str) -> None:
    plan, found = mixed(200), list[FinishedRequest]()
    results = simulate(plan, [instance_shape()] * 3, policy=policy, on_finished=found.append)
    assert sorted(request.index for request in found) == list(range(200))
    assert {request.place for request in found} == {"instance0", "instance1", "instance2"}
    elapsed_s = results["elapsed_s"]
    num_output = sum(request.output_len for request in plan)
    assert results["decode_tokens_per_s"] * elapsed_s == pytest.approx(num_output)
    num_input = sum(request.input_len for request in plan)
    assert results["prompt_tokens_per_s"] * elapsed_s == pytest.approx(num_input)
    assert results["gpu_seconds"] == pytest.approx(3 * elapsed_s)


def test_the_same_seed_gives_the_same_results_to_the_last_bit() -> None:
    def run() -> Results:
        return simulate(
            mixed(300), [instance_shape()] * 2, policy="power_of_two", seed=4, slo=Slo(ttft_s=0.1)
        )

    assert run() == run()


def test_replicas_share_the_load_of_one() -> None:
    one = simulate(requests_at([0.0] * 64), [instance_shape(SLOW)])
    four = simulate(requests_at([0.0] * 64), [instance_shape(SLOW)] * 4)
    assert one["elapsed_s"] == pytest.approx(4 * four["elapsed_s"])


def test_what_exceeds_the_bounds_is_refused() -> None:
    shape = instance_shape(SLOW, max_reqs=2)
    bounds = QueueBounds(requests=3, tokens=1000)
    results = simulate(requests_at([0.0] * 20), [shape], bounds=bounds, slo=Slo(ttft_s=100.0))
    assert (results["num_finished"], results["num_refused"]) == (5, 15)
    assert results["slo_attainment"] == 0.25


def test_a_request_too_long_for_the_cache_is_refused_and_others_serve_on() -> None:
    plan = requests_at([0.0, 1.0])
    plan[0] = PlannedRequest(index=0, arrival_s=0.0, input_len=100, output_len=100)
    results = simulate(plan, [instance_shape(num_blocks=20)])
    assert (results["num_finished"], results["num_refused"]) == (1, 1)


def test_a_lost_instance_takes_its_requests_with_it_and_the_other_serves_on() -> None:
    found: list[FinishedRequest] = []
    plan = requests_at([0.1 * i for i in range(100)], output_len=20)
    results = simulate(
        plan,
        [instance_shape(LinearCost(step_s=0.1))] * 2,
        failures=[Failure(time_s=5.0, instance=1)],
        on_finished=found.append,
    )
    assert results["num_failed"] > 0
    assert results["num_failed"] + results["num_finished"] == 100
    assert not [r for r in found if r.place == "instance1" and r.finished_s > 5.0]
    assert results["gpu_seconds"] == pytest.approx(results["elapsed_s"] + 5.0)


def test_without_any_instance_all_is_refused() -> None:
    plan = requests_at([0.0, 10.0])
    failures = [Failure(time_s=5.0, instance=0)]
    results = simulate(plan, [instance_shape()], failures=failures)
    assert (results["num_finished"], results["num_refused"]) == (1, 1)


def test_a_window_ends_the_simulation_of_endless_arrivals() -> None:
    times = arrival_times("uniform", 10.0, random.Random(0))
    plan = plan_requests(times, itertools.repeat((10, 5)), count=None, duration_s=None)
    results = simulate(plan, [instance_shape()], warmup_s=5.0, duration_s=20.0)
    assert results["elapsed_s"] == 20.0
    assert results["requests_per_s"] == pytest.approx(10.0, rel=0.01)


def test_memory_does_not_grow_with_simulated_time() -> None:
    def peak(count: int) -> int:
        times = arrival_times("uniform", 50.0, random.Random(0))
        plan = plan_requests(times, itertools.repeat((16, 4)), count=count, duration_s=None)
        tracemalloc.start()
        try:
            simulate(plan, [instance_shape(LinearCost(step_s=0.005))], slo=Slo(ttft_s=0.1))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(300)  # what is made once
    assert peak(3000) < 1.1 * peak(1500)


def test_a_row_is_written_for_every_request(tmp_path: Path) -> None:
    with RequestLog(tmp_path) as log:
        simulate(requests_at([0.0, 1.0, 2.0]), [instance_shape()], on_finished=log)
    rows = list(csv.DictReader((tmp_path / "requests.csv").open()))
    assert [row["index"] for row in rows] == ["0", "1", "2"]
    assert float(rows[2]["ttft_s"]) == pytest.approx(0.011)


def test_a_workload_out_of_order_is_refused() -> None:
    with pytest.raises(ConfigError, match="sort the workload"):
        simulate(requests_at([1.0, 0.5]), [instance_shape()])


def test_a_failure_of_nobody_is_refused() -> None:
    with pytest.raises(ConfigError, match="instances 0 to 0"):
        simulate([], [instance_shape()], failures=[Failure(time_s=0.0, instance=1)])
