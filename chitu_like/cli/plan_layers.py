"""Layers on unequal machines: each method of `plan.method`, its figures and files (Helix, ASPLOS'25)."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from chitu_like.bench.result_files import write_json
from chitu_like.cli.plan_simulation import BestFew
from chitu_like.cli.planning_input import LayerProblem, read_problem, results_folder
from chitu_like.cli.planning_output import RESULT_FILE, figures_table, placement_file
from chitu_like.cluster.drawing import draw_cluster
from chitu_like.cluster.layer_placement import LayerPlacement
from chitu_like.cluster.layer_placement_file import read_layer_placement
from chitu_like.config.planning import PlanningConfig
from chitu_like.core.errors import CapacityError, UnsupportedError
from chitu_like.planner.flow_graph import FlowResult, check_reachable, evaluate
from chitu_like.planner.heuristics import homogeneous, petals, swarm
from chitu_like.planner.layer_plan import LayerPlan
from chitu_like.planner.local_search import (
    Candidate,
    SearchLimits,
    SearchProgress,
    local_search,
)
from chitu_like.planner.milp import MilpLimits, MilpSolution, place_by_milp
from chitu_like.planner.score import Score, Scorer

WARM_START_SHARE = 0.2
"""Of the time limit, in which local search finds what HiGHS begins from."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A placement and what a method says of it beside its flow."""

    placement: LayerPlacement
    figures: dict[str, float | str] = field(default_factory=dict)


def plan_layers(config: PlanningConfig, console: Console) -> None:
    """Search, evaluate, print and write.

    Raises: CapacityError for a model that does not fit, ConfigError for what cannot be meant.
    """
    problem = read_problem(config)
    folder = results_folder(config)
    check_reachable(problem.cluster)
    problem.throughput.check_fits(problem.cluster)
    begun_s = time.monotonic()
    found = _search(problem, config, console)
    seconds = time.monotonic() - begun_s
    flow = evaluate(problem.cluster, problem.model, problem.throughput, found.placement)
    score = Scorer(problem.cluster, problem.throughput).score(flow, found.placement.held)
    figures = _figures(problem, config, found, flow, score) | {"search_s": seconds}
    console.print(figures_table(f"{problem.model.name}: {config.plan.method}", figures))
    console.print(_layers_table(problem, found.placement, flow))
    _write(problem, config, folder, found.placement, flow, figures, console)


def _search(problem: LayerProblem, config: PlanningConfig, console: Console) -> Found:
    cluster, throughput, seed = problem.cluster, problem.throughput, config.plan.seed
    match config.plan.method:
        case "petals":
            return Found(placement=petals(cluster, throughput, seed=seed))
        case "swarm":
            return Found(placement=swarm(cluster, throughput))
        case "homogeneous":
            return Found(placement=homogeneous(cluster, throughput, seed=seed))
        case "load":
            assert config.plan.load is not None, "PlanSection checks it"
            path = Path(config.plan.load).expanduser()
            return Found(placement=read_layer_placement(path))
        case "milp":
            return _milp(problem, config, console)
        case _:
            return _local_search(problem, config, console)


def _local_search(problem: LayerProblem, config: PlanningConfig, console: Console) -> Found:
    plan = config.plan
    with _search_bar(console, plan.time_limit_s) as tell:
        best_few = BestFew(problem, plan, tell.simulation)
        best = _anneal(
            problem, config, best_few.search_s, tell, best_few if plan.num_simulated else None
        )
    figures = best_few.figures() if plan.num_simulated else {}
    if best.simulated:
        figures["simulated_tokens_per_s"] = best.simulated
    return Found(placement=best.placement, figures=figures)


def _anneal(
    problem: LayerProblem,
    config: PlanningConfig,
    time_s: float,
    tell: _Tell,
    simulate: BestFew | None = None,
) -> Candidate:
    plan = config.plan
    [best, *_] = local_search(
        problem.cluster,
        problem.model,
        problem.throughput,
        limits=SearchLimits(
            time_s=time_s,
            evaluations=plan.evaluations,
            seed=plan.seed,
            keep=max(1, plan.num_simulated),
        ),
        objective="flow" if plan.method == "milp" else plan.objective,
        simulate=simulate,
        progress=tell.search,
    )
    return best


def _milp(problem: LayerProblem, config: PlanningConfig, console: Console) -> Found:
    limit_s = config.plan.time_limit_s
    with _search_bar(console, limit_s) as tell:
        start = _anneal(problem, config, WARM_START_SHARE * limit_s, tell)
        solution: MilpSolution = place_by_milp(
            problem.cluster,
            problem.model,
            problem.throughput,
            start=start.placement if start.flow.max_flow > 0 else None,
            partial=config.plan.partial_inference,
            limits=MilpLimits(time_s=(1 - WARM_START_SHARE) * limit_s, seed=_seed32(config)),
            report=tell.milp,
        )
    return Found(
        placement=solution.placement,
        figures={
            "bound": solution.bound,
            "gap": solution.gap,
            "stopped_by": solution.stopped_by,
        },
    )


def _seed32(config: PlanningConfig) -> int:
    """HiGHS takes 31 bits."""
    return config.plan.seed % 2**31


def _figures(
    problem: LayerProblem,
    config: PlanningConfig,
    found: Found,
    flow: FlowResult,
    score: Score,
) -> dict[str, float | str]:
    """What result.json has at its top level."""
    return {
        "model": problem.model.name,
        "method": config.plan.method,
        "max_compute_throughput": problem.throughput.compute_bound(problem.cluster),
        "max_flow": flow.max_flow,
        "predicted_tokens_per_s": score.tokens_per_s,
        "predicted_requests_per_s": score.requests_per_s,
        "predicted_in_flight": score.in_flight,
        "predicted_prompt_latency_s": score.prompt_latency_s,
        "predicted_decode_latency_s": score.decode_latency_s,
        "predicted_kv_use": score.kv_use,
        "bottleneck": ", ".join(flow.bottleneck),
        **found.figures,
    }


def _layers_table(problem: LayerProblem, placement: LayerPlacement, flow: FlowResult) -> Table:
    table = Table("node", "device", "layers", "tokens/s", "of", "use")
    for name, layers in sorted(placement.held.items(), key=lambda item: (item[1].start, item[0])):
        rate, most = flow.node_flow.get(name, 0.0), flow.node_capacity[name]
        table.add_row(
            name,
            problem.cluster.by_name[name].device,
            f"{layers.start}-{layers.stop - 1}",
            f"{rate:,.1f}",
            f"{most:,.1f}",
            f"{rate / most:.0%}" if most else "-",
        )
    return table


def _write(
    problem: LayerProblem,
    config: PlanningConfig,
    folder: Path | None,
    placement: LayerPlacement,
    flow: FlowResult,
    figures: dict[str, float | str],
    console: Console,
) -> None:
    path = placement_file(config, folder)
    if path is not None:
        comment = f"{problem.model.name} on {config.cluster}, by plan.method={config.plan.method}"
        plan = LayerPlan.of(
            problem.cluster,
            problem.model,
            problem.throughput,
            placement,
            method=config.plan.method,
        )
        plan.write(path, comment)
        console.print(f"placement: {path}")
    if folder is None:
        return
    routes = [
        {
            "nodes": [hop.node for hop in route.hops],
            "layers": [f"{hop.layers.start}-{hop.layers.stop - 1}" for hop in route.hops],
            "tokens_per_s": route.tokens_per_s,
        }
        for route in flow.routes
    ]
    links = {" -> ".join(ends): rate for ends, rate in flow.link_flow.items()}
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in figures.items()
    }
    write_json(folder / RESULT_FILE, {**finite, "routes": routes, "link_flow": links})
    try:
        drawing = folder / "placement.png"
        draw_cluster(drawing, problem.cluster, placement=placement, link_flow=flow.link_flow)
    except UnsupportedError as error:
        console.print(f"no drawing: {error}")
    console.print(f"results: {folder}")
    if flow.max_flow <= 0:
        raise CapacityError(f"the placement serves nothing: {', '.join(flow.bottleneck)}")


class _Tell:
    """Shows how far a search is."""

    def __init__(self, progress: Progress, limit_s: float) -> None:
        self._progress = progress
        self._task = progress.add_task("searching", total=limit_s, now="")

    def search(self, now: SearchProgress) -> None:
        """Of local search."""
        shown = (
            f"{now.served:,.0f} tokens/s served, flow {now.max_flow:,.0f}, {now.evaluations:,} seen"
        )
        self._progress.update(self._task, completed=now.elapsed_s, now=shown)

    def milp(self, seconds: float, best: float, bound: float) -> None:
        """Of HiGHS, from its thread."""
        shown = f"flow {best:,.0f} of at most {bound:,.0f} tokens/s"
        self._progress.update(self._task, description="HiGHS", completed=seconds, now=shown)

    def simulation(self) -> None:
        """One more of the best few is simulated."""
        self._progress.update(self._task, description="simulating the best few")


@contextmanager
def _search_bar(console: Console, limit_s: float) -> Iterator[_Tell]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[now]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield _Tell(progress, limit_s)
