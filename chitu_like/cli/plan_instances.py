"""`plan.method=distserve`: parallelism of prefill and decode instances, by goodput (DistServe, OSDI'24)."""

from __future__ import annotations

import os
import time
from collections import Counter

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from chitu_like.bench.result_files import write_csv, write_json
from chitu_like.cli.planning_input import (
    link_within,
    needed_cluster,
    pick_device,
    read_profile,
    results_folder,
)
from chitu_like.cli.planning_output import RESULT_FILE, figures_table, placement_file
from chitu_like.cluster.cost_model import ModelFacts
from chitu_like.cluster.topology import Cluster
from chitu_like.config.planning import DEFAULT_WORKLOAD, PlanningConfig
from chitu_like.core.errors import ConfigError
from chitu_like.planner.distserve import (
    DistServePlan,
    Found,
    SearchOptions,
    SearchSpace,
    search_high_affinity,
    search_low_affinity,
)
from chitu_like.planner.instance_goodput import InstanceSimulation
from chitu_like.planner.instance_plan import InstancePlan, write_instance_plan
from chitu_like.simulator.instance_shapes import InstanceSource
from chitu_like.simulator.results import Slo
from chitu_like.simulator.workload_file import load_workload

SHOWN = 8


def plan_instances(config: PlanningConfig, console: Console) -> None:
    """Search, print and write.

    Raises: CapacityError where nothing fits or keeps the SLO, ConfigError for what cannot be meant.
    """
    cluster = needed_cluster(config)
    profile, model = read_profile(config)
    device = pick_device(config, profile, model)
    folder = results_folder(config)
    space = search_space(config, cluster, device, profile.model(model))
    simulation = InstanceSimulation(
        source=InstanceSource(profile=profile, model=model, device=device, config=config),
        workload=load_workload(config.workload or DEFAULT_WORKLOAD),
        slo=Slo(ttft_s=config.slo.ttft_s, tpot_s=config.slo.tpot_s),
        num_requests=config.plan.num_requests,
        seed=config.plan.seed,
        link=None if config.plan.affinity == "high" else link_within(cluster, device),
    )
    begun_s = time.monotonic()
    found = _search(simulation, space, device, config, console)
    figures = _figures(found.plan, config, model) | {"search_s": time.monotonic() - begun_s}
    console.print(figures_table(f"{model}: distserve, {config.plan.affinity} affinity", figures))
    console.print(_tried_table(found))
    path = placement_file(config, folder)
    if path is not None:
        write_instance_plan(found.plan, path, f"{model} on {config.cluster}, by DistServe's search")
        console.print(f"placement: {path}")
    if folder is not None:
        rows = [_row(one) for one in found.tried]
        write_json(folder / RESULT_FILE, {**figures, "tried": rows})
        write_csv(folder / "tried.csv", rows)
        console.print(f"results: {folder}")


def search_space(
    config: PlanningConfig, cluster: Cluster, device: str, model: ModelFacts
) -> SearchSpace:
    """What may be tried: each node is a device, and nodes of a region are a machine.

    Raises: ConfigError for a cluster without the device, or a model whose heads nobody told.
    """
    nodes = [node for node in cluster.nodes if node.device.lower() == device.lower()]
    if not nodes:
        there = ", ".join(sorted({node.device for node in cluster.nodes}))
        raise ConfigError(f"cluster={config.cluster} has no {device}: it has {there}")
    if not model.num_heads:
        raise ConfigError(
            f"{model.name}: num_heads is 0 in the profile's model.json: tp divides heads, so say how "
            "many there are"
        )
    machines = Counter(node.region for node in nodes)
    return SearchSpace(
        num_heads=model.num_heads,
        num_kv_heads=model.num_kv_heads,
        num_layers=model.num_layers,
        devices_per_machine=min(machines.values()),
        num_devices=len(nodes),
        max_tp=config.plan.max_tp,
        max_pp=config.plan.max_pp,
    )


def _search(
    simulation: InstanceSimulation,
    space: SearchSpace,
    device: str,
    config: PlanningConfig,
    console: Console,
) -> DistServePlan:
    processes = config.plan.processes
    options = SearchOptions(
        target=config.slo.attainment,
        precision=config.plan.precision,
        rate=config.plan.rate,
        processes=len(os.sched_getaffinity(0)) if processes == "auto" else processes,
    )
    columns = (
        TextColumn("simulating"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None)

        def starts(count: int) -> None:
            progress.update(task, total=count)

        def tell(found: Found) -> None:
            shown = f"{found.candidate}: {found.goodput:.2f} requests/s"
            progress.update(task, advance=1, description=shown)

        is_high = config.plan.affinity == "high"
        search = search_high_affinity if is_high else search_low_affinity
        return search(simulation, space, device, options, tell, starts)


def _figures(plan: InstancePlan, config: PlanningConfig, model: str) -> dict[str, object]:
    figures: dict[str, object] = {
        "model": model,
        "method": "distserve",
        "affinity": config.plan.affinity,
        "device": plan.device,
        "goodput": plan.goodput,
        "num_devices": plan.num_devices,
        "goodput_per_device": None if plan.goodput is None else plan.goodput / plan.num_devices,
    }
    for group in plan.groups:
        name = group.role.value
        figures |= {
            f"{name}_tp": group.parallelism.tp,
            f"{name}_pp": group.parallelism.pp,
            f"{name}_replicas": group.count,
        }
    return figures


def _row(found: Found) -> dict[str, object]:
    candidate = found.candidate
    return {
        "prefill": str(candidate.prefill or ""),
        "decode": str(candidate.decode or ""),
        "num_devices": candidate.num_devices,
        "goodput": found.goodput,
        "goodput_per_device": found.per_device,
    }


def _tried_table(found: DistServePlan) -> Table:
    table = Table(
        "instance", "devices", "goodput, 1/s", "a device", title="the best that were tried"
    )
    for one in found.tried[:SHOWN]:
        table.add_row(
            str(one.candidate),
            str(one.candidate.num_devices),
            f"{one.goodput:.3f}",
            f"{one.per_device:.3f}",
        )
    return table
