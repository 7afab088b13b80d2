"""Every op, matrix product and attention backend at a model's shapes, beside the device's measured roof.

One row is one implementation at one point: decodes of a batch size, or a prompt. On CUDA its time is
that inside a graph (chitu_like/bench/device_timing.py), and its share of the roof is the time that its
unavoidable bytes or operations take at the measured rates, whichever is longer, over its own. Small
work cannot come near: a kernel's start and end take microseconds.
"""

from __future__ import annotations

import argparse
import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from chitu_like.bench.device_timing import num_sets, seconds_per_call
from chitu_like.bench.op_case import Case, Setting
from chitu_like.bench.op_cases import CASES
from chitu_like.bench.provenance import provenance
from chitu_like.bench.result_files import write_json
from chitu_like.bench.roof import Roof, measure_roof
from chitu_like.cli.command_line import Parser, positive_int, positive_ints
from chitu_like.config.load import load_config
from chitu_like.core.ending import DONE, FAILED
from chitu_like.core.errors import ConfigError
from chitu_like.model_files import read_model_files
from chitu_like.worker.device import device_facts

TABLE_WIDTH = 100
MAX_KV_BYTES = 16 << 30
"""Of one attention case; longer contexts of large batches are left out."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is measured.

    Attributes:
        models: names of config/models.
        batches, contexts: of decodes; work that the context does not matter to is timed at the first.
        prompts: tokens of each prompt.
    """

    models: Sequence[str]
    batches: Sequence[int]
    contexts: Sequence[int]
    prompts: Sequence[int]


DEFAULTS = {
    "cuda": Sweep(
        models=("llama-3-8b", "qwen3-0.6b"),
        batches=(1, 8, 32, 128, 256),
        contexts=(1024, 8192),
        prompts=(8192,),
    ),
    "cpu": Sweep(models=("tiny-chat",), batches=(1, 8), contexts=(64,), prompts=(64,)),
}
"""By kind of device."""


@dataclass(frozen=True, kw_only=True)
class OpRow:
    """One implementation at one point.

    Attributes:
        op, kind: the case and its implementation.
        model: whose shapes.
        phase: decode or prefill.
        num_tokens, context: of the point.
        seconds: of a call.
        bytes_per_s, flops_per_s: of what cannot be avoided.
        roof_share: of the measured roof.
    """

    op: str
    kind: str
    model: str
    phase: str
    num_tokens: int
    context: int
    seconds: float
    bytes_per_s: float
    flops_per_s: float
    roof_share: float


def run(prog: str, arguments: Sequence[str]) -> int:
    """Measure, print a table a model, write JSON if asked to."""
    options = _parser(prog).parse_args(arguments)
    cases = select_cases(options.op)
    facts = device_facts(options.device)
    if options.device != "auto" and options.device != facts.device:
        raise ConfigError(f"--device {options.device}: torch sees no such device here")
    device = torch.device(facts.device)
    dtype = torch.bfloat16
    console = Console(soft_wrap=True, highlight=False, width=TABLE_WIDTH)
    roof = measure_roof(device, dtype)
    console.print(
        f"{facts.name}: reads {roof.read_bytes_per_s / 1e12:.3f} TB/s, multiplies "
        f"{roof.matmul_flops_per_s / 1e12:.2f} TFLOP/s in bfloat16 (measured now)"
    )
    rows: list[OpRow] = []
    failures: list[str] = []
    sweep = _sweep_of(options, DEFAULTS[device.type])
    for model in sweep.models:
        found = [
            row_or_failure(case, kind, at, roof)
            for at in settings(model, sweep, device, dtype, options.block_size)
            for case, kind in wanted(cases, at, options.impl)
        ]
        failures += [failure for failure in found if isinstance(failure, str)]
        rows += [row for row in found if isinstance(row, OpRow)]
        console.print(_table(model, [row for row in rows if row.model == model]))
    for failure in failures:
        console.print(f"FAILED: {failure:.300}", markup=False)
    if options.json is not None:
        origin = {**asdict(provenance(prog, arguments, facts)), "roof": asdict(roof)}
        write_json(options.json, {"benchmark": "ops", **origin, "rows": [asdict(r) for r in rows]})
    return FAILED if failures else DONE


def select_cases(patterns: Sequence[str]) -> list[Case]:
    """The cases whose names match a pattern; all where there are none.

    Raises: ConfigError for a pattern without a case.
    """
    for pattern in patterns:
        if not any(fnmatch.fnmatch(case.name, pattern) for case in CASES):
            names = ", ".join(case.name for case in CASES)
            raise ConfigError(f"--op {pattern}: there is none; use {names}, or a pattern")
    if not patterns:
        return list(CASES)
    return [case for case in CASES if any(fnmatch.fnmatch(case.name, p) for p in patterns)]


def settings(
    model: str, sweep: Sweep, device: torch.device, dtype: torch.dtype, block_size: int
) -> Iterator[Setting]:
    """The points of a model: decodes by context and batch, then prompts."""
    spec = read_model_files(load_config([f"models={model}", "models.load_format=dummy"])).spec
    decodes = ((batch, 1, context) for context in sweep.contexts for batch in sweep.batches)
    prompts = ((1, length, length) for length in sweep.prompts)
    for num_reqs, query_len, context in (*decodes, *prompts):
        yield Setting(
            model=model,
            spec=spec,
            num_reqs=num_reqs,
            query_len=query_len,
            context=context,
            is_first_context=query_len > 1 or context == sweep.contexts[0],
            block_size=block_size,
            device=device,
            dtype=dtype,
        )


def wanted(cases: Sequence[Case], at: Setting, kinds: Sequence[str]) -> Iterator[tuple[Case, str]]:
    """What is to be timed at a point, and by which implementation.

    Args:
        cases: of the sweep.
        at: the point.
        kinds: only these implementations; empty: all.
    """
    for case in cases:
        if case.needs_context:
            kv_bytes = at.spec.kv_bytes_per_token(at.dtype.itemsize) // at.spec.num_layers
            is_wanted = at.num_reqs * at.context * kv_bytes <= MAX_KV_BYTES
        else:
            is_wanted = at.is_first_context  # elsewhere it is the same work again
        for kind in case.kinds(at) if is_wanted else ():
            if not kinds or kind in kinds:
                yield case, kind


def row_or_failure(case: Case, kind: str, at: Setting, roof: Roof) -> OpRow | str:
    """What `time_case` finds, or why it fails: one kernel must not cost all others their rows."""
    try:
        return time_case(case, kind, at, roof)
    except Exception as error:
        return f"{case.name} by {kind}, {at.num_tokens} tokens: {error!r}"


def time_case(case: Case, kind: str, at: Setting, roof: Roof) -> OpRow:
    """Time a case by one implementation at one point."""
    work = case.make(at, kind)
    calls = [work.fresh() for _ in range(num_sets(work.streamed_bytes, at.device))]
    seconds = seconds_per_call(calls, at.device, in_graph=work.in_graph)
    return OpRow(
        op=case.name,
        kind=kind,
        model=at.model,
        phase="decode" if at.is_decode else "prefill",
        num_tokens=at.num_tokens,
        context=at.context,
        seconds=seconds,
        bytes_per_s=work.num_bytes / seconds,
        flops_per_s=work.num_flops / seconds,
        roof_share=roof.floor_s(work.num_bytes, work.num_flops) / seconds,
    )


def _sweep_of(options: argparse.Namespace, default: Sweep) -> Sweep:
    return Sweep(
        models=options.models or default.models,
        batches=options.batches or default.batches,
        contexts=options.contexts or default.contexts,
        prompts=options.prompts or default.prompts,
    )


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog,
        "Time every op, matrix product and attention backend at a model's shapes, in bfloat16, and "
        "hold it against what this device reads and multiplies at best.",
        [
            f"{prog} --models llama-3-8b --batches 1,8 --json ops.json",
            f"{prog} --op attention --impl triton,flashinfer --contexts 1024,8192",
            f"{prog} --op '*_proj'",
        ],
    )
    words = lambda text: [word.strip() for word in text.split(",")]  # noqa: E731
    names = ", ".join(case.name for case in CASES)
    parser.add_argument("--op", type=words, default=[], metavar="NAME,...", help=f"of {names}")
    parser.add_argument(
        "--impl", type=words, default=[], metavar="KIND,...",
        help="torch, triton, cuda, auto, or an attention backend (default: all that serve)",
    )  # fmt: skip
    parser.add_argument("--models", type=words, metavar="NAME,...", help="of config/models")
    parser.add_argument("--batches", type=positive_ints, metavar="B,...", help="of decodes")
    parser.add_argument("--contexts", type=positive_ints, metavar="L,...", help="of decodes")
    parser.add_argument("--prompts", type=positive_ints, metavar="L,...", help="of prefill")
    parser.add_argument("--block-size", type=positive_int, default=16, metavar="N")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    return parser


def _table(model: str, rows: Sequence[OpRow]) -> Table:
    table = Table(title=model, title_justify="left")
    for name in ("op", "by"):
        table.add_column(name, no_wrap=True)
    for name in ("phase", "tokens", "context", "us", "GB/s", "TFLOP/s", "of roof"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in sorted(rows, key=lambda row: (row.op, row.phase, row.context, row.num_tokens)):
        table.add_row(
            row.op,
            row.kind,
            row.phase,
            str(row.num_tokens),
            str(row.context),
            f"{row.seconds * 1e6:.1f}",
            f"{row.bytes_per_s / 1e9:.1f}",
            f"{row.flops_per_s / 1e12:.2f}" if row.flops_per_s else "-",
            f"{row.roof_share:.0%}",
        )
    return table
