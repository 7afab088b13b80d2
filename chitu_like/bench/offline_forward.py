"""What prefill and a decode step cost, by batch size and context length."""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.table import Table

from chitu_like.bench.engine_run import EngineRun
from chitu_like.bench.random_prompts import random_prompts

DEFAULT_BATCHES = (1, 8, 32)


@dataclass(frozen=True, kw_only=True)
class ForwardRow:
    """One point of the sweep; medians over the repeats."""

    batch_size: int
    context: int
    prefill_s: float
    prefill_tokens_per_s: float
    decode_step_ms: float
    decode_tokens_per_s: float


def sweep(
    engine_run: EngineRun, rng: random.Random, vocab_size: int, options: argparse.Namespace
) -> Iterator[ForwardRow]:
    """Measure every batch size with every context length.

    Raises: CapacityError before anything is measured, if a batch does not run at once.
    """
    steps = options.decode_steps
    points = [
        (batch, context)
        for batch in options.batches or DEFAULT_BATCHES
        for context in options.contexts
    ]
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


def forward_table(rows: Sequence[ForwardRow]) -> Table:
    """The sweep, a row a point."""
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
