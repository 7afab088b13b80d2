"""The engine in this process, without a server: what a step costs, and a workload of many requests.

`forward`: for each batch size and context length, the speed of prefill (all prompts at once, one token
out) and the time of a decode step (the same with N tokens more, the difference divided by N).

`workload`: requests of random lengths all at once, as nano-vllm's benchmark does (256 prompts of 100
to 1024 tokens, 100 to 1024 tokens out, no end-of-text): the whole time, tokens/s.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from chitu_like.bench.engine_run import NO_PREFIX_CACHE, EngineRun, with_defaults
from chitu_like.bench.provenance import provenance
from chitu_like.bench.random_prompts import random_prompt, random_prompts
from chitu_like.bench.result_files import write_json
from chitu_like.cli.command_line import Parser, positive_int, positive_ints
from chitu_like.config.load import load_config
from chitu_like.core.ending import DONE
from chitu_like.llm import LLM
from chitu_like.worker.device import device_facts


@dataclass(frozen=True, kw_only=True)
class ForwardRow:
    """One point of the sweep; medians over the repeats."""

    batch_size: int
    context: int
    prefill_s: float
    prefill_tokens_per_s: float
    decode_step_ms: float
    decode_tokens_per_s: float


@dataclass(frozen=True, kw_only=True)
class WorkloadRow:
    """One run of a workload; tpot is the mean over requests of decode seconds a token."""

    num_prompts: int
    num_input_tokens: int
    num_output_tokens: int
    elapsed_s: float
    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    mean_tpot_ms: float | None


def run(prog: str, arguments: Sequence[str]) -> int:
    """Measure, print a table, write JSON if asked to."""
    options = _parser(prog).parse_intermixed_args(arguments)
    overrides = with_defaults(options.overrides, NO_PREFIX_CACHE)
    facts = device_facts(load_config(overrides).infer.device)
    console = Console(soft_wrap=True)
    with LLM(*overrides) as llm:
        engine_run = EngineRun(llm)
        rng = random.Random(options.seed)
        rows: list[ForwardRow] | list[WorkloadRow]
        if options.mode == "forward":
            rows = list(sweep(engine_run, rng, llm.info.vocab_size, options))
            console.print(_forward_table(rows))
        else:
            rows = [run_workload(engine_run, rng, llm.info.vocab_size, options)]
            console.print(_workload_table(rows[0]))
    if options.json is not None:
        origin = provenance(prog, arguments, facts)
        results = {"benchmark": "offline", "mode": options.mode, **asdict(origin)}
        write_json(options.json, {**results, "rows": [asdict(row) for row in rows]})
    return DONE


def sweep(
    engine_run: EngineRun, rng: random.Random, vocab_size: int, options: argparse.Namespace
) -> Iterator[ForwardRow]:
    """Measure every batch size with every context length.

    Raises: CapacityError before anything is measured, if a batch does not run at once.
    """
    steps = options.decode_steps
    points = [(batch, context) for batch in options.batches for context in options.contexts]
    for batch, context in points:
        engine_run.check_room(batch, context + 1 + steps)
    for batch, context in points:
        prefill_s, decode_s = [], []
        for repeat in range(options.repeats + 1):
            prompts = random_prompts(rng, [context] * batch, vocab_size)
            short_s = engine_run.seconds(prompts, 1)
            long_s = engine_run.seconds(prompts, 1 + steps)
            if repeat:  # the first one warms up
                prefill_s.append(short_s)
                decode_s.append((long_s - short_s) / steps)
        step_s = statistics.median(decode_s)
        whole_s = statistics.median(prefill_s)
        yield ForwardRow(
            batch_size=batch,
            context=context,
            prefill_s=whole_s,
            prefill_tokens_per_s=batch * context / whole_s,
            decode_step_ms=step_s * 1e3,
            decode_tokens_per_s=batch / step_s,
        )


def run_workload(
    engine_run: EngineRun, rng: random.Random, vocab_size: int, options: argparse.Namespace
) -> WorkloadRow:
    """Run all requests of the workload at once.

    Raises: CapacityError if one of them can never run.
    """
    (in_low, in_high), (out_low, out_high) = options.input, options.output
    engine_run.check_room(1, in_high + out_high)
    inputs = [rng.randint(in_low, in_high) for _ in range(options.num_prompts)]
    outputs = [rng.randint(out_low, out_high) for _ in range(options.num_prompts)]
    prompts = random_prompts(rng, inputs, vocab_size)
    engine_run.seconds([random_prompt(rng, in_low, vocab_size)], min(8, out_low))  # warm up
    elapsed_s, answers = engine_run.outputs(prompts, outputs)
    tpot = [
        answer.times.decode_s / (number - 1)
        for answer, number in zip(answers, outputs, strict=True)
        if answer.times is not None and number > 1
    ]
    return WorkloadRow(
        num_prompts=len(prompts),
        num_input_tokens=sum(inputs),
        num_output_tokens=sum(outputs),
        elapsed_s=elapsed_s,
        requests_per_s=len(prompts) / elapsed_s,
        output_tokens_per_s=sum(outputs) / elapsed_s,
        total_tokens_per_s=(sum(inputs) + sum(outputs)) / elapsed_s,
        mean_tpot_ms=statistics.mean(tpot) * 1e3 if tpot else None,
    )


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog,
        "Measure the engine in this process. `forward` sweeps batch size and context length; "
        "`workload` answers requests of random lengths. Token ids are random, answers have exact "
        "lengths; prefix caching is off unless you set it.",
        [
            f"{prog} forward --batches 1,8 --contexts 128,1024 models=qwen3-0.6b "
            "models.load_format=dummy",
            f"{prog} workload --num-prompts 32 --input 10-100 --output 10-100",
        ],
    )
    parser.add_argument("mode", choices=("forward", "workload"), help="what to measure")
    parser.add_argument("--seed", type=int, default=0, help="of prompts and lengths (default: 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    forward = parser.add_argument_group("forward")
    forward.add_argument("--batches", type=positive_ints, default=[1, 8, 32], metavar="B,...")
    forward.add_argument("--contexts", type=positive_ints, default=[128, 512], metavar="L,...")
    forward.add_argument("--decode-steps", type=positive_int, default=32, metavar="N")
    forward.add_argument("--repeats", type=positive_int, default=3, metavar="N")
    workload = parser.add_argument_group("workload")
    workload.add_argument("--num-prompts", type=positive_int, default=256, metavar="N")
    workload.add_argument("--input", type=length_range, default=(100, 1024), metavar="LOW-HIGH")
    workload.add_argument("--output", type=length_range, default=(100, 1024), metavar="LOW-HIGH")
    parser.add_overrides()
    return parser


def length_range(text: str) -> tuple[int, int]:
    """An argument LOW-HIGH, or one number for both."""
    low, _, high = text.partition("-")
    found = positive_int(low), positive_int(high or low)
    if found[0] > found[1]:
        raise argparse.ArgumentTypeError(f"{text!r}: the first number is the larger one")
    return found


def _forward_table(rows: Sequence[ForwardRow]) -> Table:
    table = Table(title="forward", title_justify="left")
    for name in (
        "batch",
        "context",
        "prefill s",
        "prefill tok/s",
        "decode step ms",
        "decode tok/s",
    ):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            str(row.batch_size),
            str(row.context),
            f"{row.prefill_s:.3f}",
            f"{row.prefill_tokens_per_s:.0f}",
            f"{row.decode_step_ms:.2f}",
            f"{row.decode_tokens_per_s:.1f}",
        )
    return table


def _workload_table(row: WorkloadRow) -> Table:
    table = Table(title="workload", title_justify="left", show_header=False)
    tpot = "-" if row.mean_tpot_ms is None else f"{row.mean_tpot_ms:.2f} ms"
    for name, value in (
        ("requests", f"{row.num_prompts}"),
        ("tokens in, out", f"{row.num_input_tokens}, {row.num_output_tokens}"),
        ("time", f"{row.elapsed_s:.2f} s"),
        ("requests/s", f"{row.requests_per_s:.2f}"),
        ("output tokens/s", f"{row.output_tokens_per_s:.1f}"),
        ("all tokens/s", f"{row.total_tokens_per_s:.1f}"),
        ("mean TPOT", tpot),
    ):
        table.add_row(name, value)
    return table
