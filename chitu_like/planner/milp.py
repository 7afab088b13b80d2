"""The placement that no other beats, proven: HiGHS on the program of milp_model.py.

Some six nodes with twenty layers are solved to the end in half a minute; on larger clusters HiGHS improves
a warm start and bounds what is left to gain. It runs in a thread, so that Ctrl-C ends the search and not
the plan.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from chitu_like.cluster.cost_model import ModelFacts
from chitu_like.cluster.layer_placement import LayerPlacement
from chitu_like.cluster.topology import Cluster
from chitu_like.core.errors import CapacityError, UnsupportedError
from chitu_like.planner.flow_graph import evaluate
from chitu_like.planner.milp_model import NEGLIGIBLE, PlacementProblem, build
from chitu_like.planner.throughput import NodeThroughput

if TYPE_CHECKING:
    import highspy

StoppedBy = Literal["proof", "time", "no gain", "Ctrl-C"]
Report = Callable[[float, float, float], None]
"""Called now and then from HiGHS's thread with seconds, best flow and its bound, in tokens a second."""


@dataclass(frozen=True, kw_only=True)
class MilpLimits:
    """When to be content.

    Attributes:
        time_s: seconds after which the best so far is taken.
        gap: share of the bound that may be missing for a solution to count as proven.
        stale_gap, stale_s: likewise, once nothing was gained for so long.
        threads: of HiGHS; 0 leaves the choice to it.
        seed: of its random choices.
    """

    time_s: float = 60.0
    gap: float = 0.005
    stale_gap: float = 0.05
    stale_s: float = 100.0
    threads: int = 0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class MilpSolution:
    """The best placement found.

    Attributes:
        placement: of the nodes that something comes through.
        flow: tokens a second.
        bound: tokens a second that no placement exceeds.
        stopped_by: why the search ended.
        seconds: that it took.
    """

    placement: LayerPlacement
    flow: float
    bound: float
    stopped_by: StoppedBy
    seconds: float

    @property
    def gap(self) -> float:
        """Share of the bound that is missing; 0 is the optimum."""
        return max(0.0, 1 - self.flow / self.bound) if self.bound > 0 else 0.0


def place_by_milp(
    cluster: Cluster,
    model: ModelFacts,
    throughput: NodeThroughput,
    *,
    start: LayerPlacement | None = None,
    partial: bool = True,
    limits: MilpLimits | None = None,
    report: Report | None = None,
) -> MilpSolution:
    """The placement with the largest flow, as far as the limits allow.

    Args:
        cluster: what to place it on.
        model: what to place.
        throughput: of its nodes.
        start: a placement to begin from; the better it is, the more is cut off at once.
        partial: whether a node may take over in the middle of its layers; without, the bound is one of
            placements whose layers never overlap so.
        limits: when to stop.
        report: is told how far it is.

    Raises: UnsupportedError without highspy; CapacityError where the model does not fit, or nothing
        was found that lets a request through.
    """
    limits = limits or MilpLimits()
    throughput.check_fits(cluster)
    problem = PlacementProblem.of(cluster, model, throughput, partial=partial)
    found = solve(problem, start=start, limits=limits, report=report)
    # HiGHS tolerates a millionth here and there, and may be ended before it has understood the start.
    found = max(
        (
            replace(found, placement=one, flow=evaluate(cluster, model, throughput, one).max_flow)
            for one in (found.placement, start)
            if one is not None
        ),
        key=lambda solution: solution.flow,
    )
    if found.flow > 0:
        return found
    if found.stopped_by == "proof":
        raise CapacityError(
            f"no placement of {model.name} lets a request through all {model.num_layers} layers: "
            "add links between nodes, or to source and sink"
        )
    raise CapacityError(
        f"HiGHS found no placement that serves in {found.seconds:.0f} s: give it more time "
        "(plan.time_limit_s), or search with plan.method=local_search"
    )


def solve(
    problem: PlacementProblem,
    *,
    start: LayerPlacement | None = None,
    limits: MilpLimits | None = None,
    report: Report | None = None,
) -> MilpSolution:
    """Search until there is a proof, the limits are reached or somebody presses Ctrl-C.

    Returns: a placement of nothing where nothing was found in time.

    Raises: UnsupportedError without highspy.
    """
    limits = limits or MilpLimits()
    solver = _quiet_solver(limits)
    program = build(problem, solver)
    if start is not None:
        program.warm_start(start)
    watch = _Watch(limits=limits, unit=program.unit, report=report)
    _run(solver, watch)
    is_found = solver.getSolution().value_valid
    flow = program.value() if is_found else 0.0
    bound = solver.getInfo().mip_dual_bound * program.unit
    if not is_found or not flow * (1 - NEGLIGIBLE) <= bound < math.inf:
        bound = math.inf  # one that is ended at once has none yet
    return MilpSolution(
        placement=program.placement() if is_found else LayerPlacement(problem.num_layers, {}),
        flow=flow,
        bound=min(bound, problem.compute_bound),
        stopped_by=watch.stopped_by or ("proof" if _is_proven(solver) else "time"),
        seconds=solver.getRunTime(),
    )


def _quiet_solver(limits: MilpLimits) -> highspy.Highs:
    try:
        import highspy
    except ImportError:
        raise UnsupportedError(
            "plan.method=milp needs HiGHS: pip install 'chitu-like[planner]'"
        ) from None
    solver = highspy.Highs()  # type: ignore[no-untyped-call]
    solver.silent()
    solver.setOptionValue("time_limit", limits.time_s)
    solver.setOptionValue("mip_rel_gap", _highs_gap(limits.gap))
    solver.setOptionValue("mip_abs_gap", 0.0)
    solver.setOptionValue("threads", limits.threads)
    solver.setOptionValue("random_seed", limits.seed)
    return solver


def _is_proven(solver: highspy.Highs) -> bool:
    return solver.modelStatusToString(solver.getModelStatus()) == "Optimal"


def _highs_gap(gap: float) -> float:
    """HiGHS divides by the solution, not by the bound."""
    return gap / (1 - gap)


class _Watch:
    """Looks on while HiGHS runs, and ends it.

    Attributes:
        stopped_by: why it was ended; None while it was not.
    """

    def __init__(self, *, limits: MilpLimits, unit: float, report: Report | None) -> None:
        self.stopped_by: StoppedBy | None = None
        self._limits, self._unit, self._report = limits, unit, report
        self._best, self._gained_s = 0.0, 0.0

    def of_search(self, event: highspy.HighsCallbackEvent) -> None:
        """Between two nodes of the search tree."""
        now_s = event.data_out.running_time
        best, bound = event.data_out.mip_primal_bound, event.data_out.mip_dual_bound
        if best > self._best:
            self._best, self._gained_s = best, now_s
        is_close = best >= (1 - self._limits.stale_gap) * bound
        if is_close and now_s - self._gained_s > self._limits.stale_s:
            self.stopped_by = self.stopped_by or "no gain"
        if self._report is not None:
            self._report(now_s, max(best, 0.0) * self._unit, bound * self._unit)
        event.interrupt(self.stopped_by is not None)

    def of_simplex(self, event: highspy.HighsCallbackEvent) -> None:
        """Inside a linear program, of which the first can take long."""
        event.interrupt(self.stopped_by is not None)

    def join(self, thread: threading.Thread) -> None:
        """Wait a little; the first Ctrl-C ends the search, a second one more than that."""
        try:
            thread.join(0.1)
        except KeyboardInterrupt:
            if self.stopped_by == "Ctrl-C":
                raise
            self.stopped_by = "Ctrl-C"


def _run(solver: highspy.Highs, watch: _Watch) -> None:
    solver.cbMipInterrupt.subscribe(watch.of_search)
    solver.cbSimplexInterrupt.subscribe(watch.of_simplex)
    thread = threading.Thread(target=solver.run, daemon=True)
    thread.start()
    while thread.is_alive():
        watch.join(thread)
