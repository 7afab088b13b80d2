"""A run of the load generator as a table, rows and pictures."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table

from chitu_like.bench.latency import (
    SentRequest,
    ServingSummary,
    Spread,
    gaps_of,
    tpot_of,
    ttft_of,
)
from chitu_like.core.errors import ConfigError, UnsupportedError

LATE_S = 0.1
"""Sent so much after it was due, a request no longer belongs to the arrivals that were asked for."""


def figures_table(summary: ServingSummary) -> Table:
    """Throughput and counts."""
    table = Table(title="serving", title_justify="left", show_header=False)
    failed = f"{summary.num_failed} failed" if summary.num_failed else "none failed"
    short = f", {summary.num_short} shorter than asked" if summary.num_short else ""
    table.add_row("requests", f"{summary.num_requests}, {failed}{short}")
    table.add_row("time", f"{summary.elapsed_s:.2f} s")
    table.add_row("requests/s", f"{summary.requests_per_s:.2f}")
    table.add_row("input tokens/s", f"{summary.input_tokens_per_s:.1f}")
    table.add_row("output tokens/s", f"{summary.output_tokens_per_s:.1f}")
    if summary.goodput is not None and summary.slo_attainment is not None:
        kept = f"{summary.slo_attainment:.1%} keep the SLO"
        table.add_row("goodput", f"{summary.goodput:.2f} requests/s ({kept})")
    for error, number in summary.errors.items():
        table.add_row("[red]error[/red]", f"{number} x {error}")
    return table


def latency_table(summary: ServingSummary) -> Table:
    """Mean and percentiles in milliseconds."""
    table = Table(title="latency in ms", title_justify="left")
    table.add_column("")
    for name in ("mean", "p50", "p90", "p99"):
        table.add_column(name, justify="right")
    for name, spread in (
        ("TTFT, to the first token", summary.ttft_s),
        ("TPOT, per later token", summary.tpot_s),
        ("ITL, between events", summary.itl_s),
        ("E2E, to the end", summary.e2e_s),
    ):
        table.add_row(name, *_in_ms(spread))
    return table


def remarks(summary: ServingSummary) -> list[str]:
    """What a reader must know before he believes the figures."""
    said = []
    if summary.late_s is not None and summary.late_s.p99 > LATE_S:
        said.append(
            f"requests were sent up to {summary.late_s.p99:.2f} s (p99) after they were due: "
            "--max-concurrency or this process held them back"
        )
    if summary.num_short:
        said.append(
            f"{summary.num_short} answers are shorter than asked: the server does not know "
            "ignore_eos, or cut them"
        )
    return said


def request_rows(sent: Sequence[SentRequest]) -> list[Mapping[str, object]]:
    """A row for each request; times in seconds, arrival since the first was due."""
    start_s = min((item.due_s for item in sent), default=0.0)
    return [
        {
            "index": index,
            "due_s": item.due_s - start_s,
            "sent_s": item.record.start_s - start_s,
            "input_tokens": item.num_input_tokens,
            "output_tokens": item.record.num_output_tokens,
            "ttft_s": ttft_of(item.record),
            "tpot_s": tpot_of(item.record),
            "e2e_s": item.record.end_s - item.record.start_s,
            "error": item.record.error,
        }
        for index, item in enumerate(sent)
    ]


def check_plotting() -> None:
    """Raise UnsupportedError, naming the extra, unless pictures can be drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UnsupportedError("--plot needs matplotlib: pip install 'chitu-like[plot]'")


def write_plot(path: Path, sent: Sequence[SentRequest]) -> None:
    """Draw the distributions of TTFT, TPOT and ITL, and TTFT over time.

    Raises: ConfigError if the file cannot be written.
    """
    from matplotlib.figure import Figure  # an extra: "plot"

    good = [item for item in sent if item.record.error is None]
    start_s = min((item.due_s for item in sent), default=0.0)
    figure = Figure(figsize=(10, 4), layout="constrained")
    shares, over_time = figure.subplots(1, 2)
    for name, values in (
        ("TTFT", [ttft_of(item.record) for item in good]),
        ("TPOT", [tpot_of(item.record) for item in good]),
        ("ITL", [gap for item in good for gap in gaps_of(item.record)]),
    ):
        known = sorted(value * 1e3 for value in values if value is not None)
        shares.plot(known, [(i + 1) / len(known) for i in range(len(known))], label=name)
    shares.set(xlabel="ms", ylabel="share of requests or gaps", xscale="log", ylim=(0, 1))
    shares.legend()
    points = [(item.due_s - start_s, ttft_of(item.record)) for item in good]
    known_points = [(due_s, ttft_s) for due_s, ttft_s in points if ttft_s is not None]
    over_time.plot([p[0] for p in known_points], [p[1] * 1e3 for p in known_points], ".")
    over_time.set(xlabel="due, s", ylabel="TTFT, ms", ylim=(0, None))
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--plot {path} cannot be written: {error}") from None


def _in_ms(spread: Spread | None) -> list[str]:
    if spread is None:
        return ["-"] * 4
    values = (spread.mean, spread.p50, spread.p90, spread.p99)
    return [f"{value * 1e3:.2f}" for value in values]
