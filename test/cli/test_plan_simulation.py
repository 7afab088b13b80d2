from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest

from chitu_like.cli.plan_simulation import BestFew, steady_requests
from chitu_like.cli.planning_input import LayerProblem, read_problem
from chitu_like.config.load import load_planning
from chitu_like.planner.flow_graph import evaluate
from chitu_like.planner.heuristics import homogeneous
from chitu_like.planner.throughput import TypicalLoad
from chitu_like.simulator.layer_service import simulate_layers
from chitu_like.simulator.workload import PlannedRequest

KEYS = ["cluster=mixed-24", "profile=roofline", "model=llama1_30b", "plan.evaluations=1"]


def unlike_requests(load: TypicalLoad) -> Iterator[PlannedRequest]:
    """Lengths of answers differ, as in life, so that nothing stays in step."""
    rng = random.Random(1)
    most = round(2 * load.mean_output) - 1
    for index in itertools.count():
        yield PlannedRequest(
            index=index,
            arrival_s=0.0,
            input_len=round(load.mean_input),
            output_len=rng.randint(1, most),
        )


@pytest.mark.slow
def test_a_short_simulation_says_what_a_long_one_of_unlike_requests_says() -> None:
    config = load_planning(KEYS, environ={})
    problem: LayerProblem = read_problem(config)
    placement = homogeneous(problem.cluster, problem.throughput, seed=0)
    flow = evaluate(problem.cluster, problem.model, problem.throughput, placement)
    best_few = BestFew(problem, config.plan, lambda: None)
    seen = best_few(placement, flow)
    assert best_few.num_simulated == 1
    long = simulate_layers(
        problem.cluster,
        problem.model,
        problem.layer_times,
        placement,
        flow.link_flow,
        unlike_requests(problem.load),
        warmup_s=500,
        duration_s=300,
        expected_output=problem.load.mean_output,
    )
    load = problem.load
    expected = long["decode_tokens_per_s"] * load.tokens / load.mean_output
    assert seen == pytest.approx(expected, rel=0.06)


def test_requests_that_fill_the_system_end_evenly_spread() -> None:
    load = TypicalLoad(mean_input=100, mean_output=50)
    found = list(itertools.islice(steady_requests(load, 1000), 1100))
    assert {request.input_len for request in found} == {100}
    lengths = [request.output_len for request in found]
    for length in range(1, 51):
        assert lengths[:1000].count(length) == pytest.approx(20, abs=2)
    assert lengths[1000:] == [50] * 100
