"""Is the simulator right? The same arrivals through a real instance and through a simulated one.

Loads are shares of what the instance answers at most, so the last of them are beyond saturation. The
cost of a step comes from a profile, or is fitted here to the steps of other requests than those compared.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from chitu_like.bench.engine_tape import Tape, TapedInstance
from chitu_like.bench.random_prompts import random_prompt
from chitu_like.bench.result_files import write_json
from chitu_like.cli.command_line import Parser, positive_floats, positive_int
from chitu_like.cluster.cost_model import BatchShape, StepCost
from chitu_like.cluster.profile import find_profile
from chitu_like.cluster.profile_records import HostCost
from chitu_like.cluster.step_fit import FittedStep
from chitu_like.cluster.step_fitting import fit_steps, residuals
from chitu_like.core.ending import DONE
from chitu_like.core.errors import ConfigError
from chitu_like.core.sampling_params import SamplingParams
from chitu_like.engine.messages import AddRequest
from chitu_like.simulator.arrivals import arrival_times
from chitu_like.simulator.recorder import FinishedRequest
from chitu_like.simulator.service import simulate
from chitu_like.simulator.traces import read_lengths
from chitu_like.simulator.workload import PlannedRequest, drawn, plan_requests

CALIBRATION_LOADS = (0.4, 0.8, 1.5)
FIGURES = ("ttft p50", "ttft p90", "tpot p50", "tpot p90", "tokens/s")


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What the simulated instance is told that a step takes."""

    step: StepCost
    host: HostCost


@dataclass(frozen=True)
class Scaled:
    """A StepCost on a machine that is so many times as slow."""

    cost: StepCost
    factor: float

    def seconds(self, shape: BatchShape) -> float:
        """See StepCost."""
        return self.factor * self.cost.seconds(shape)


def run(prog: str, arguments: Sequence[str]) -> int:
    """Compare, print a table, and say the worst error."""
    options = _parser(prog).parse_intermixed_args(arguments)
    console = Console()
    lengths = read_lengths(options.lengths) if options.lengths else _LENGTHS
    lengths = [pair for pair in lengths if sum(pair) <= options.max_request_len]
    if not lengths:
        raise ConfigError(f"--max-request-len {options.max_request_len}: every request is longer")
    instance = TapedInstance(*options.overrides, cpu_clock=options.cpu_clock)
    try:
        rate = _saturation(instance, lengths, options)
        console.print(f"saturated at {rate:.2f} requests/s")
        costs = _costs(instance, lengths, rate, options, console)
        rows = [
            _compare(
                instance,
                costs,
                load,
                _plan(lengths, load * rate, options, f"load {load}"),
                corrects_drift=options.correct_drift,
            )
            for load in options.loads
        ]
    finally:
        instance.shutdown()
    console.print(_table(rows))
    if options.json is not None:
        write_json(options.json, {"saturation_per_s": rate, "rows": rows})
    return DONE


_LENGTHS = tuple((i, o) for i in (16, 64, 200) for o in (10, 25, 60))


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog,
        "Serve the same arrivals with a real instance and a simulated one, at several loads.",
        [
            f"{prog} --cpu-clock models=tiny-chat infer.device=cpu infer.schedule_overlap=false",
            f"{prog} --profile mine --model llama-3-8b --device H200 models=llama-3-8b "
            "models.load_format=dummy",
        ],
    )
    parser.add_argument(
        "--loads",
        type=positive_floats,
        default=[0.3, 0.6, 0.9, 1.3],
        metavar="X,...",
        help="shares of the rate at which the instance is saturated",
    )
    parser.add_argument("--num-requests", type=positive_int, default=200, metavar="N")
    parser.add_argument("--lengths", type=Path, metavar="FILE", help="(input, output) to draw from")
    parser.add_argument("--max-request-len", type=positive_int, default=1024, metavar="N")
    parser.add_argument("--profile", metavar="NAME|DIR", help="else steps are measured here")
    parser.add_argument("--model", metavar="NAME", help="in the profile")
    parser.add_argument("--device", metavar="NAME", help="in the profile")
    parser.add_argument(
        "--cpu-clock",
        action="store_true",
        help="count seconds of this process's CPU: where other programs use the machine too",
    )
    parser.add_argument(
        "--correct-drift",
        action="store_true",
        help="multiply step times by how slow the machine was in the compared run itself (one "
        "factor a load, the column `slowness`): where its speed is not what it was when fitted",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    parser.add_overrides()
    return parser


# What comes


def _plan(
    lengths: Sequence[tuple[int, int]], rate: float | None, options: argparse.Namespace, name: str
) -> list[PlannedRequest]:
    """Poisson arrivals at a rate; all at once without one."""
    rng = random.Random(f"{options.seed} {name}")
    times = arrival_times("burst" if rate is None else "poisson", rate, rng)
    return list(
        plan_requests(times, drawn(lengths, rng), count=options.num_requests, duration_s=None)
    )


def _serve(instance: TapedInstance, plan: Sequence[PlannedRequest]) -> Tape:
    """Let the real instance answer, with prompts of random tokens."""
    vocab_size = instance.engine.info.vocab_size
    rng = random.Random(len(plan))
    return instance.serve(
        [
            (
                request.arrival_s,
                AddRequest(
                    str(request.index),
                    random_prompt(rng, request.input_len, vocab_size),
                    SamplingParams(max_tokens=request.output_len, ignore_eos=True),
                ),
            )
            for request in plan
        ]
    )


# What steps cost


def _saturation(
    instance: TapedInstance, lengths: Sequence[tuple[int, int]], options: argparse.Namespace
) -> float:
    """Requests/s where all come at once; the first round warms the machine up."""
    for turn in range(2):
        tape = _serve(instance, _plan(lengths, None, options, f"burst {turn}"))
    return len(tape.finished) / tape.elapsed_s


def _costs(
    instance: TapedInstance,
    lengths: Sequence[tuple[int, int]],
    rate: float,
    options: argparse.Namespace,
    console: Console,
) -> Costs:
    if options.profile is not None:
        profile = find_profile(options.profile)
        return Costs(
            step=profile.step_cost(options.model, options.device),
            host=profile.host_cost(options.model, options.device),
        )
    tapes = [
        _serve(instance, _plan(lengths, load * rate, options, f"calibration {load}"))
        for load in CALIBRATION_LOADS
    ]
    points = list(itertools.chain.from_iterable(tape.measured() for tape in tapes))
    step = FittedStep(fit_steps(points), where="fitted here")
    found = residuals(step, points)
    console.print(
        f"{found.count} steps fitted: errors {found.median:.1%} median, {found.p95:.1%} p95"
    )
    host = _host_cost(tapes)
    console.print(f"host: {host.step_s * 1e6:.0f} us a step, {host.request_s * 1e6:.1f} a request")
    return Costs(step=step, host=host)


def _host_cost(tapes: Sequence[Tape]) -> HostCost:
    """From a batch taken in to the next one sent, by the requests in it (least squares)."""
    pairs = [
        (batch.num_reqs, sent_s - taken_s)
        for tape in tapes
        for batch, (sent_s, _), (_, taken_s) in zip(
            tape.batches[tape.max_in_flight :],
            tape.spans_s[tape.max_in_flight :],
            tape.spans_s,
            strict=False,
        )
        if sent_s > taken_s
    ]
    limit_s = 3 * statistics.median(seconds for _, seconds in pairs)  # longer: it was idle
    kept = np.array([pair for pair in pairs if pair[1] < limit_s])
    slope, constant = np.polyfit(kept[:, 0], kept[:, 1], 1)
    return HostCost(step_s=max(0.0, float(constant)), request_s=max(0.0, float(slope)))


# What came out


def _compare(
    instance: TapedInstance,
    costs: Costs,
    load: float,
    plan: Sequence[PlannedRequest],
    *,
    corrects_drift: bool,
) -> dict[str, float]:
    """Each figure measured, simulated, and the relative error."""
    tape = _serve(instance, plan)
    points = tape.measured()
    told_s = sum(costs.step.seconds(point.shape) for point in points)
    slowness = sum(point.seconds for point in points) / told_s
    step = Scaled(costs.step, slowness) if corrects_drift else costs.step
    answered: list[FinishedRequest] = []
    shape = instance.shape([step], costs.host)
    results = simulate(plan, [shape], on_finished=answered.append)
    measured = _figures(tape.finished, tape.elapsed_s)
    simulated = _figures(answered, results["elapsed_s"])
    row = {"load": load, "slowness": slowness}
    for name in FIGURES:
        row |= {f"{name} measured": measured[name], f"{name} simulated": simulated[name]}
        row[f"{name} error"] = simulated[name] / measured[name] - 1
    return row


def _figures(finished: Sequence[FinishedRequest], elapsed_s: float) -> dict[str, float]:
    ttft_p50, ttft_p90 = np.percentile([r.ttft_s for r in finished], (50, 90))
    tpot = [tpot_s for r in finished if (tpot_s := r.tpot_s) is not None]
    tpot_p50, tpot_p90 = np.percentile(tpot, (50, 90))
    rate = sum(r.output_len for r in finished) / elapsed_s
    return dict(zip(FIGURES, (ttft_p50, ttft_p90, tpot_p50, tpot_p90, rate), strict=True))


def _table(rows: Sequence[dict[str, float]]) -> Table:
    table = Table("load", "slowness", *FIGURES, title="measured, simulated (ms; tokens/s), error")
    for row in rows:
        cells = []
        for name in FIGURES:
            unit = 1.0 if name == "tokens/s" else 1e3
            measured, simulated = (
                row[f"{name} {kind}"] * unit for kind in ("measured", "simulated")
            )
            cells.append(f"{measured:,.4g} {simulated:,.4g} {row[f'{name} error']:+.1%}")
        table.add_row(f"{row['load']:g}", f"{row['slowness']:.2f}", *cells)
    return table
