"""A workload of many requests of random lengths, all at once."""

from __future__ import annotations

import argparse
import random
import statistics
from dataclasses import dataclass

from rich.table import Table

from chitu_like.bench.engine_run import EngineRun
from chitu_like.bench.random_prompts import random_prompt, random_prompts


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


def workload_table(row: WorkloadRow) -> Table:
    """The run."""
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
