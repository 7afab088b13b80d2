"""Measure what steps of a model cost on this machine, fit them, and write a profile for plan and simulate.

Steps go through the very executor that serves, two in flight as the engine keeps it: decodes, chunks with
and without a prefix, both together. The fit sees a grid of them; how good it is, others say, which were
drawn at random and are not fitted.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from chitu_like.bench.host_cost import measure_host_cost
from chitu_like.bench.provenance import provenance
from chitu_like.bench.result_files import write_csv
from chitu_like.bench.step_shapes import Room, StepShape, grid, held_out
from chitu_like.bench.step_timing import spread, time_steps
from chitu_like.cli.command_line import Parser, positive_float, positive_int
from chitu_like.cluster.cost_model import BatchShape
from chitu_like.cluster.profile import MODELS_FILE, Profile
from chitu_like.cluster.profile_records import Capacity, ModelRecord, StepsRecord
from chitu_like.cluster.roofline import DTYPE_BYTES, model_facts
from chitu_like.cluster.step_fit import FittedStep, StepFit
from chitu_like.cluster.step_fitting import Measured, Residuals, fit_steps, residuals
from chitu_like.config.architecture import read_hf_config
from chitu_like.config.load import load_config
from chitu_like.config.schema import ServeConfig
from chitu_like.core.ending import DONE
from chitu_like.core.errors import ConfigError
from chitu_like.core.model_spec import ModelSpec
from chitu_like.engine.executor import Executor
from chitu_like.instance import LoadedEngine, load_engine
from chitu_like.model_files import read_model_files
from chitu_like.rank import follow, gather
from chitu_like.torchrun import TorchrunRank
from chitu_like.worker.device import device_facts

MEDIAN_TARGET, P95_TARGET = 0.05, 0.15
"""Relative errors on steps that were not fitted, which a profile should keep."""
BUSY = 0.04  # rounds of one step differ so much where something else runs; 0.02 and less where not
KINDS = ("decodes", "prompts", "mixed")


def run(prog: str, arguments: Sequence[str]) -> int:
    """Measure, fit, print how good it is, write the profile."""
    options = _parser(prog).parse_intermixed_args(arguments)
    config = load_config(options.overrides)
    _check(config)
    here = TorchrunRank.from_environ(os.environ)
    here.check(config, program=prog)
    files = read_model_files(config)
    if here.rank > 0:
        return follow(config, files.spec, os.environ)
    crew = gather(config, files.spec, os.environ)
    loaded = load_engine(config, files, crew, shows_progress=True)
    executor = crew.executor(overlap=config.infer.schedule_overlap)
    try:
        room = _room(loaded)
        steps = [*grid(room), *held_out(room, options.held_out, options.seed)]
        rounds = _measure(executor, steps, room.block_size, options)
    finally:
        executor.shutdown()
    num_fitted = len(steps) - options.held_out
    points = [
        Measured(shape=_batch_shape(step, room), seconds=statistics.median(found))
        for step, found in zip(steps, rounds, strict=True)
    ]
    spec = files.spec
    fit = fit_steps(
        points[:num_fitted],
        head_layers=spec.vocab_size * spec.hidden_size / spec.layer_parameters(),
    )
    errors = _errors(fit, steps, points, num_fitted)
    console = Console(soft_wrap=True)
    console.print(_table(errors, statistics.median(map(spread, rounds))))
    facts = device_facts(config.infer.device)
    device = options.device or _short_name(facts.name if facts.device != "cpu" else "cpu")
    host = measure_host_cost(room.max_reqs, block_size=room.block_size)
    console.print(
        f"engine: {host.step_s * 1e6:.0f} us a step and {host.request_s * 1e6:.2f} us a request in it, "
        "which overlap hides behind the device",
        highlight=False,
    )
    origin = asdict(provenance(prog, arguments, facts))
    record = StepsRecord(
        fitted={config.infer.tp_size: fit},
        capacity=[
            Capacity(
                tp=config.infer.tp_size, pp=1, max_num_tokens=room.num_blocks * room.block_size
            )
        ],
        host=host,
        memory_bytes=float(facts.memory_bytes),
        residuals=_as_figures(errors, config.infer.tp_size),
        measured={key: str(value) for key, value in origin.items()},
    )
    name = options.name or config.models.name
    _write(options.out, name, device, record, _model_record(config, loaded, spec, name))
    rows = _rows(fit, steps, points, rounds, num_fitted)
    write_csv(options.out / name / device.lower() / f"points_tp{config.infer.tp_size}.csv", rows)
    console.print(f"profile={options.out} model={name}: device {device}", highlight=False)
    return DONE


def _check(config: ServeConfig) -> None:
    if config.infer.pp_size > 1:
        raise ConfigError(
            f"infer.pp_size={config.infer.pp_size}: a profile is of whole models; stages follow from it"
        )
    if config.deploy.replicas > 1:
        raise ConfigError(f"deploy.replicas={config.deploy.replicas}: measure one instance")


def _room(loaded: LoadedEngine) -> Room:
    info, resolved = loaded.engine.info, loaded.resolved
    return Room(
        max_reqs=info.max_reqs,
        max_seq_len=info.max_seq_len,
        max_chunk=resolved.prefill_chunk_size,
        max_tokens=resolved.max_num_batched_tokens,
        num_blocks=info.num_blocks,
        block_size=info.block_size,
    )


def _measure(
    executor: Executor, steps: Sequence[StepShape], block_size: int, options: argparse.Namespace
) -> list[list[float]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        total = (options.rounds + 1) * len(steps)
        task = progress.add_task(f"{len(steps)} steps, {options.rounds} rounds", total=total)
        return time_steps(
            executor,
            steps,
            block_size=block_size,
            rounds=options.rounds,
            target_s=options.target_s,
            seed=options.seed,
            on_step=lambda: progress.advance(task),
        )


def _batch_shape(step: StepShape, room: Room) -> BatchShape:
    return BatchShape.of(step.batches(room.block_size)[1])


def _errors(
    fit: StepFit, steps: Sequence[StepShape], points: Sequence[Measured], num_fitted: int
) -> dict[tuple[str, str], Residuals]:
    """(kind, whether fitted) -> relative errors; the kind "all" besides."""
    cost = FittedStep(fit)
    found = {}
    for part, chosen in (("fitted", slice(num_fitted)), ("held out", slice(num_fitted, None))):
        pairs = list(zip(steps[chosen], points[chosen], strict=True))
        for kind in (*KINDS, "all"):
            of_kind = [point for step, point in pairs if kind in ("all", step.kind)]
            found[kind, part] = residuals(cost, of_kind)
    return found


def _table(errors: dict[tuple[str, str], Residuals], noise: float) -> Table:
    held = errors["all", "held out"]
    meets = held.median < MEDIAN_TARGET and held.p95 < P95_TARGET
    busy = ", so the machine was busy: measure again when it is not" if noise > BUSY else ""
    table = Table(
        title="relative error of the fit",
        caption=f"targets on steps that were not fitted: median under {MEDIAN_TARGET:.0%}, P95 under "
        f"{P95_TARGET:.0%}: {'met' if meets else 'MISSED'}; rounds of one step differ by {noise:.1%}"
        f"{busy}",
        title_justify="left",
        caption_justify="left",
    )
    for name in ("steps", "part", "count", "median", "P95", "worst"):
        table.add_column(name, justify="right")
    for (kind, part), found in errors.items():
        figures = (found.median, found.p95, found.worst)
        table.add_row(kind, part, str(found.count), *(f"{figure:.1%}" for figure in figures))
    return table


def _as_figures(errors: dict[tuple[str, str], Residuals], tp: int) -> dict[str, dict[str, float]]:
    return {
        f"tp {tp}, {kind}, {part}": {key: round(value, 5) for key, value in asdict(found).items()}
        for (kind, part), found in errors.items()
    }


def _model_record(
    config: ServeConfig, loaded: LoadedEngine, spec: ModelSpec, name: str
) -> ModelRecord:
    facts = model_facts(name, spec, DTYPE_BYTES[loaded.resolved.dtype])
    return ModelRecord.of(facts, hf_config=dict(read_hf_config(config.models)))


def _write(folder: Path, name: str, device: str, record: StepsRecord, model: ModelRecord) -> None:
    """Add to the profile in a folder, or begin one."""
    known = Profile.read(folder) if (folder / MODELS_FILE).exists() else Profile(models={})
    key = (name, device.lower())
    if (old := known.steps.get(key)) is not None:
        record = _merged(old, record)
    replace(known, models={**known.models, name: model}, steps={**known.steps, key: record}).write(
        folder
    )


def _merged(old: StepsRecord, new: StepsRecord) -> StepsRecord:
    """What is newly measured replaces what it is about; other degrees of tp stay."""
    fresh = {(row.tp, row.pp) for row in new.capacity}
    return StepsRecord(
        fitted={**old.fitted, **new.fitted},
        distserve=old.distserve,
        capacity=[row for row in old.capacity if (row.tp, row.pp) not in fresh] + new.capacity,
        host=new.host,
        memory_bytes=new.memory_bytes,
        residuals={**old.residuals, **new.residuals},
        measured=new.measured,
    )


def _rows(
    fit: StepFit,
    steps: Sequence[StepShape],
    points: Sequence[Measured],
    rounds: Sequence[Sequence[float]],
    num_fitted: int,
) -> list[dict[str, object]]:
    """Every point, for whoever wants to look."""
    cost = FittedStep(fit)
    return [
        {
            "kind": step.kind,
            "part": "fitted" if index < num_fitted else "held out",
            **msgspec.structs.asdict(point.shape),
            "seconds": f"{point.seconds:.6g}",
            "fit_s": f"{cost.seconds(point.shape):.6g}",
            "spread": f"{spread(rounds[index]):.4f}",
        }
        for index, (step, point) in enumerate(zip(steps, points, strict=True))
    ]


def _short_name(name: str) -> str:
    """What clusters call a device: "NVIDIA A100-SXM4-80GB" is an A100."""
    words = re.split(r"[\s-]+", name.removeprefix("NVIDIA ").strip())
    return re.sub(r"[^A-Za-z0-9._]", "", words[0]) or "device"


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog,
        "Measure what steps of a model cost on this machine, fit them, and write a profile that "
        "`chitu-like plan` and `simulate` take. Under torchrun with infer.tp_size above 1 another "
        "degree joins the same folder.",
        [
            f"{prog} --out outputs/profile-cpu models=tiny-chat infer.device=cpu",
            f"{prog} --out outputs/profile-h200 --rounds 2 --target-s 0.02 models=llama-3-8b "
            "models.load_format=dummy infer.max_seq_len=8192",
        ],
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="the profile's folder"
    )
    parser.add_argument("--name", help="the model's in the profile (default: models)")
    parser.add_argument("--device", help="the device's in the profile (default: from its maker)")
    parser.add_argument(
        "--rounds", type=positive_int, default=5, metavar="N", help="of all steps (default: 5)"
    )
    parser.add_argument(
        "--target-s",
        type=positive_float,
        default=0.05,
        metavar="S",
        help="that measuring a step once should take (default: 0.05)",
    )
    parser.add_argument(
        "--held-out", type=positive_int, default=48, metavar="N", help="random steps (default: 48)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of those, and of the order (default: 0)"
    )
    parser.add_overrides()
    return parser
