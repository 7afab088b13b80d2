"""Both kinds of simulation from one configuration: nodes that hold layers, and instances."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from chitu_like.cli.planning_input import (
    link_anywhere,
    needed_cluster,
    pick_device,
    read_problem,
    read_profile,
    results_folder,
)
from chitu_like.cli.simulation_view import SimulationView
from chitu_like.cluster.layer_placement_file import read_layer_placement
from chitu_like.cluster.placement import Role
from chitu_like.cluster.profile import Profile
from chitu_like.cluster.record import Record
from chitu_like.cluster.topology import Link
from chitu_like.config.planning import DEFAULT_WORKLOAD, PlanningConfig, SimulateSection
from chitu_like.core.errors import CapacityError, ConfigError, UnsupportedError
from chitu_like.planner.flow_graph import evaluate
from chitu_like.planner.instance_plan import (
    InstanceGroup,
    InstancePlan,
    Parallelism,
    read_instance_plan,
)
from chitu_like.router.admission import QueueBounds
from chitu_like.simulator.disagg import simulate_split
from chitu_like.simulator.instance import InstanceShape
from chitu_like.simulator.instance_shapes import InstanceSource
from chitu_like.simulator.layer_service import simulate_layers
from chitu_like.simulator.plots import (
    check_plotting,
    plot_attainment,
    plot_latencies,
    plot_timeline,
)
from chitu_like.simulator.recorder import FinishedRequest
from chitu_like.simulator.request_log import RequestLog
from chitu_like.simulator.results import Results, Slo
from chitu_like.simulator.service import simulate
from chitu_like.simulator.workload import PlannedRequest
from chitu_like.simulator.workload_file import load_workload


def simulate_config(config: PlanningConfig, console: Console) -> Results:
    """Simulate what the keys describe; print a table, write the files of `out=`.

    Raises: ConfigError or CapacityError for what cannot be simulated, in one line.
    """
    has_layers = _has_layers(config)
    _check_effect(config, has_layers=has_layers)
    folder = results_folder(config)
    begun_s = time.monotonic()
    with ExitStack() as stack:
        view = stack.enter_context(
            SimulationView(console, _until_s(config), watch=config.simulate.watch)
        )
        log = stack.enter_context(RequestLog(folder)) if folder is not None else None
        observer = _Observer(view, log)
        if has_layers:
            results = _simulate_layers(config, observer)
        else:
            results = _simulate_instances(config, observer)
    results = results.with_figures({"wall_s": time.monotonic() - begun_s})
    console.print(
        results.table(f"{config.model or ''} {config.workload or DEFAULT_WORKLOAD}".strip())
    )
    if folder is not None:
        write_results(folder, results, console)
    return results


def write_results(folder: Path, results: Results, console: Console) -> None:
    """Write json, csv and, where matplotlib is there, the plots."""
    results.write(folder)
    try:
        check_plotting()
    except UnsupportedError as error:
        console.print(f"no plots: {error}")
    else:
        plot_timeline(folder / "timeline.png", results)
        plot_latencies(folder / "latencies.png", {"simulated": results})
        plot_attainment(folder / "attainment.png", {"simulated": results})
    console.print(f"results: {folder}")


class _Observer:
    """Tells view and log of each answered request."""

    def __init__(self, view: SimulationView, log: RequestLog | None) -> None:
        self.view = view
        self._log = log

    def __call__(self, request: FinishedRequest) -> None:
        self.view.finished(request)
        if self._log is not None:
            self._log(request)


def _has_layers(config: PlanningConfig) -> bool:
    """Whether the placement is one of layers on nodes; else it is one of instances."""
    if config.placement is None:
        return False
    return Record.read(Path(config.placement).expanduser()).has("layers")


def _requests(config: PlanningConfig) -> Iterator[PlannedRequest]:
    workload = load_workload(config.workload or DEFAULT_WORKLOAD)
    return workload.requests(rate=config.simulate.rate, seed=config.simulate.seed)


def _until_s(config: PlanningConfig) -> float:
    return config.simulate.warmup_s + config.simulate.duration_s


def _slo(config: PlanningConfig) -> Slo:
    return Slo(ttft_s=config.slo.ttft_s, tpot_s=config.slo.tpot_s)


def _simulate_layers(config: PlanningConfig, observer: _Observer) -> Results:
    """Nodes that hold layers; the placement's flow is computed anew, the file need not tell it."""
    problem = read_problem(config)
    assert config.placement is not None, "the caller looked"
    placement = read_layer_placement(Path(config.placement).expanduser())
    flow = evaluate(problem.cluster, problem.model, problem.throughput, placement)
    if flow.max_flow <= 0:
        raise CapacityError(
            f"placement={config.placement} serves nothing: {', '.join(flow.bottleneck)}"
        )
    results = simulate_layers(
        problem.cluster,
        problem.model,
        problem.layer_times,
        placement,
        flow.link_flow,
        _requests(config),
        router=config.simulate.router,
        mode=config.simulate.mode,
        warmup_s=config.simulate.warmup_s,
        duration_s=config.simulate.duration_s,
        seed=config.simulate.seed,
        slo=_slo(config),
        on_finished=observer,
        watch=lambda now_s, recorder: observer.view.reached(now_s),
    )
    return results.with_figures(
        {
            "max_compute_throughput": problem.throughput.compute_bound(problem.cluster),
            "max_flow": flow.max_flow,
        }
    )


def _simulate_instances(config: PlanningConfig, observer: _Observer) -> Results:
    """Unified instances behind the router, or prefill and decode apart."""
    profile, model = read_profile(config)
    plan = _instance_plan(config, profile, model)
    source = InstanceSource(profile=profile, model=model, device=plan.device, config=config)
    shapes: dict[Role, list[InstanceShape]] = {role: [] for role in Role}
    for group in plan.groups:
        shape = source.shape(tp=group.parallelism.tp, pp=group.parallelism.pp)
        shapes[group.role] += [shape] * group.count
    section = config.simulate
    if unified := shapes[Role.UNIFIED]:
        return simulate(
            _requests(config),
            unified,
            policy=config.router.policy,
            bounds=_bounds(unified[0]),
            slo=_slo(config),
            warmup_s=section.warmup_s,
            duration_s=section.duration_s,
            seed=section.seed,
            on_finished=observer,
        )
    return simulate_split(
        _requests(config),
        shapes[Role.PREFILL],
        shapes[Role.DECODE],
        source.crossing(_kv_link(config, plan)),
        slo=_slo(config),
        warmup_s=section.warmup_s,
        duration_s=section.duration_s,
        on_finished=observer,
    )


def _instance_plan(config: PlanningConfig, profile: Profile, model: str) -> InstancePlan:
    """What the placement's file says, or the keys."""
    if config.placement is not None:
        return read_instance_plan(Path(config.placement).expanduser())
    cut = Parallelism(tp=config.infer.tp_size, pp=config.infer.pp_size)
    replicas, num_prefill = config.deploy.replicas, config.simulate.prefill_replicas
    counts = {Role.UNIFIED: replicas}
    if num_prefill:
        counts = {Role.PREFILL: num_prefill, Role.DECODE: replicas - num_prefill}
    return InstancePlan(
        device=pick_device(config, profile, model),
        groups=tuple(
            InstanceGroup(role=role, parallelism=cut, count=count) for role, count in counts.items()
        ),
    )


def _kv_link(config: PlanningConfig, plan: InstancePlan) -> Link:
    """Between a prefill and a decode instance, all their devices' links together."""
    given = config.simulate.kv_bytes_per_s
    if given is not None:
        return Link(source="prefill", target="decode", bandwidth=given)
    if config.cluster is None:
        raise ConfigError(
            "how do keys and values get from prefill to decode? name the cluster whose links they "
            "take (cluster=...), or their bytes a second (simulate.kv_bytes_per_s=...)"
        )
    link = link_anywhere(needed_cluster(config), plan.device)
    lanes = min(group.parallelism.num_devices for group in plan.groups)
    return replace(link, bandwidth=link.bandwidth * lanes)


def _bounds(shape: InstanceShape) -> QueueBounds:
    assert shape.max_queued_requests is not None, "InstanceSource sets both"
    assert shape.max_queued_tokens is not None, "InstanceSource sets both"
    return QueueBounds(requests=shape.max_queued_requests, tokens=shape.max_queued_tokens)


def _check_effect(config: PlanningConfig, *, has_layers: bool) -> None:
    """Raise ConfigError for keys that the simulated kind of service does not have."""
    simulated, default = config.simulate, SimulateSection()
    if has_layers:
        names: tuple[str, ...] = (
            "device",
            "prefill_replicas",
            "kv_bytes_per_s",
            "swap_bytes_per_s",
        )
        kind, instead = "a placement of layers", "leave it out"
    else:
        names = ("mode", "router")
        kind, instead = "instances", "it is for placements of layers (router: router.policy)"
    for name in names:
        value = getattr(simulated, name)
        if value != getattr(default, name):
            raise ConfigError(f"simulate.{name}={value} has no effect on {kind}: {instead}")
    if config.placement is not None and not has_layers and simulated.prefill_replicas:
        raise ConfigError(
            f"simulate.prefill_replicas={simulated.prefill_replicas} has no effect beside "
            f"placement={config.placement}, which says which instances prefill: leave one out"
        )
