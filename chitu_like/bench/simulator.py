"""How fast simulations are: 24 nodes that hold layers, and instances; one core each.

Goals: 740 simulated seconds of LLaMA-2 70B on mixed-24 in under 60 s, and 1e6 prompt and output tokens a
wall second of instances.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from chitu_like.bench.provenance import provenance
from chitu_like.bench.result_files import write_json
from chitu_like.cli.command_line import Parser, positive_float, positive_int
from chitu_like.cli.planning_input import read_problem, read_profile
from chitu_like.config.load import load_planning
from chitu_like.core.ending import DONE
from chitu_like.planner.flow_graph import evaluate
from chitu_like.planner.local_search import SearchLimits, local_search
from chitu_like.simulator.instance_shapes import InstanceSource
from chitu_like.simulator.layer_service import simulate_layers
from chitu_like.simulator.service import simulate
from chitu_like.simulator.workload_file import load_workload

EVALUATIONS = 3000
"""Of the placement's search: enough for one that is no toy, and the same everywhere."""
LAYER_WORKLOAD, INSTANCE_WORKLOAD = "helix", "azure_conv"


def run(prog: str, arguments: Sequence[str]) -> int:
    """Measure both kinds, print a table, write JSON where asked."""
    parser = Parser(
        prog,
        "Measure how fast the simulator is on one core: layers on 24 unequal machines, and instances "
        "that serve Azure's conversations.",
        [prog, f"{prog} --seconds 60 --requests 2000", f"{prog} --json result.json"],
    )
    parser.add_argument("--seconds", type=positive_float, default=740.0, help="simulated (layers)")
    parser.add_argument(
        "--requests", type=positive_int, default=20_000, help="simulated (instances)"
    )
    parser.add_argument("--instances", type=positive_int, default=4, help="behind one router")
    parser.add_argument("--rate", type=positive_float, default=80.0, help="requests/s (instances)")
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args(arguments)
    results = {"layers": measure_layers(options.seconds), "instances": _instances(options)}
    table = Table("simulation", "figure", "value")
    for kind, figures in results.items():
        for name, value in figures.items():
            table.add_row(kind, name, f"{value:,.4g}")
    Console(highlight=False).print(table)
    if options.json is not None:
        write_json(
            options.json, {**results, "provenance": asdict(provenance(prog, arguments, None))}
        )
    return DONE


def measure_layers(seconds: float) -> dict[str, float]:
    """Simulate so many seconds of LLaMA-2 70B on mixed-24, as many requests as fit."""
    problem = read_problem(
        load_planning(["cluster=mixed-24", "profile=roofline", "model=llama2_70b"], environ={})
    )
    limits = SearchLimits(time_s=600.0, evaluations=EVALUATIONS)
    [best, *_] = local_search(problem.cluster, problem.model, problem.throughput, limits=limits)
    flow = evaluate(problem.cluster, problem.model, problem.throughput, best.placement)
    requests = load_workload(LAYER_WORKLOAD).requests(rate=None, seed=0)
    begun_s = time.perf_counter()
    results = simulate_layers(
        problem.cluster,
        problem.model,
        problem.layer_times,
        best.placement,
        flow.link_flow,
        requests,
        warmup_s=0.0,
        duration_s=seconds,
    )
    wall_s = time.perf_counter() - begun_s
    return {
        "simulated_s": seconds,
        "wall_s": wall_s,
        "simulated_s_per_wall_s": seconds / wall_s,
        "total_tokens_per_s": results["total_tokens_per_s"],
    }


def _instances(options: argparse.Namespace) -> dict[str, float]:
    return measure_instances(options.requests, options.instances, options.rate)


def measure_instances(num_requests: int, num_instances: int, rate: float) -> dict[str, float]:
    """Simulate so many requests on instances of Qwen3-0.6B on an H200 each."""
    config = load_planning(["profile=roofline", "model=qwen3-0.6b"], environ={})
    profile, model = read_profile(config)
    source = InstanceSource(profile=profile, model=model, device="H200", config=config)
    workload = load_workload(INSTANCE_WORKLOAD)
    requests = list(itertools.islice(workload.requests(rate=rate, seed=0), num_requests))
    num_tokens = sum(request.input_len + request.output_len for request in requests)
    begun_s = time.perf_counter()
    results = simulate(requests, [source.shape(tp=1, pp=1)] * num_instances)
    wall_s = time.perf_counter() - begun_s
    return {
        "requests": num_requests,
        "tokens": num_tokens,
        "wall_s": wall_s,
        "tokens_per_wall_s": num_tokens / wall_s,
        "simulated_s": results["elapsed_s"],
    }
