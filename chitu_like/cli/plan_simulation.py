"""The best few placements of a local search, simulated side by side: scores are estimates, this is closer."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator

from chitu_like.cli.planning_input import LayerProblem
from chitu_like.cluster.layer_placement import LayerPlacement
from chitu_like.config.planning import PlanSection
from chitu_like.planner.flow_graph import FlowResult
from chitu_like.planner.score import Scorer
from chitu_like.planner.throughput import TypicalLoad
from chitu_like.simulator.layer_service import simulate_layers
from chitu_like.simulator.recorder import Recorder
from chitu_like.simulator.workload import PlannedRequest

WARMUP_S, WINDOW_S = 120.0, 300.0
"""Simulated: to fill the system with requests, and to measure."""
MOST_SHARE, EACH_S = 0.5, 20.0
"""Of plan.time_limit_s, that simulations get at most, and seconds of it for each of them."""
GOLDEN = (math.sqrt(5) - 1) / 2
"""Its multiples' fractions cover 0 to 1 evenly, however many are taken."""


class _OutOfTime(Exception):
    """The time limit ended a simulation."""


class BestFew:
    """Simulates placements one after the other within plan.time_limit_s, of which the search gets the rest.

    With plan.evaluations no clock decides anything: search and simulations take as long as they take.

    Args:
        problem: what is placed where.
        plan: its limit, number of simulations and seed.
        started: told before each simulation.

    Attributes:
        search_s: seconds of the limit that are the search's.
        num_simulated: placements whose simulation came to its end.
    """

    def __init__(
        self, problem: LayerProblem, plan: PlanSection, started: Callable[[], None]
    ) -> None:
        """The time runs from here."""
        self._problem = problem
        self._seed = plan.seed
        self._started = started
        self.num_simulated = 0
        limit_s = plan.time_limit_s if plan.evaluations is None else math.inf
        self._until_s = time.monotonic() + limit_s
        self.search_s = limit_s - min(MOST_SHARE * limit_s, EACH_S * plan.num_simulated)

    def __call__(self, placement: LayerPlacement, flow: FlowResult) -> float:
        """Tokens a second in the steady state; 0 for what serves nothing, or if the time is over.

        Output tokens are counted, and the prompts that belong to them: prompts come in bursts.
        """
        if flow.max_flow <= 0:
            return 0.0
        self._started()
        problem, load = self._problem, self._problem.load
        score = Scorer(problem.cluster, problem.throughput).score(flow, placement.held)
        try:
            results = simulate_layers(
                problem.cluster,
                problem.model,
                problem.layer_times,
                placement,
                flow.link_flow,
                steady_requests(load, round(score.in_flight)),
                warmup_s=WARMUP_S,
                duration_s=WINDOW_S,
                seed=self._seed,
                expected_output=load.mean_output,
                watch=self._check_time,
            )
        except _OutOfTime:
            return 0.0
        self.num_simulated += 1
        return results["decode_tokens_per_s"] * load.tokens / load.mean_output

    def figures(self) -> dict[str, float | str]:
        """What was simulated."""
        return {
            "num_simulated": self.num_simulated,
            "simulated_warmup_s": WARMUP_S,
            "simulated_window_s": WINDOW_S,
        }

    def _check_time(self, now_s: float, recorder: Recorder) -> None:
        if time.monotonic() >= self._until_s:
            raise _OutOfTime


def steady_requests(load: TypicalLoad, in_flight: int) -> Iterator[PlannedRequest]:
    """Average requests, all alike but for the first, whose answers are anywhere between begin and end.

    Were they alike too, those that fill the system would end together, and their successors again:
    a window would hold mostly prompts or no prompt at all, and tell little of what comes in the mean.

    Args:
        load: what is average.
        in_flight: requests that fill the system.
    """
    output_len = max(1, round(load.mean_output))
    for index in itertools.count():
        done = int(index * GOLDEN % 1 * output_len) if index < in_flight else 0
        yield PlannedRequest(
            index=index,
            arrival_s=0.0,
            input_len=max(1, round(load.mean_input)),
            output_len=output_len - done,
        )
