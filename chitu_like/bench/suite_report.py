"""The suite's figures beside the device's floor and another engine's."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table

from chitu_like.bench.suite import Figure, Suite
from chitu_like.core.errors import ConfigError

PARTS = ("steps", "forwards", "nano")
PLOTTED = (
    (re.compile(r"tpot(\d+)_ms"), "decode step, ms"),
    (re.compile(r"prefill(\d+)_tok_s"), "prefill, tokens/s"),
)


def check_parts(suite: Suite, parts: Sequence[str], batches: Sequence[int] | None) -> None:
    """Raise ConfigError for a part or a batch size that the suite does not have."""
    for batch in batches or ():
        if batch not in suite.batches:
            known = ", ".join(map(str, suite.batches))
            raise ConfigError(f"--batches {batch}: the suite's prompts are for {known}")
    for part in parts:
        if part not in PARTS:
            raise ConfigError(f"--parts {part}: use {', '.join(PARTS)}")


def suite_table(figures: Sequence[Figure], peer: tuple[str, Mapping[str, float]] | None) -> Table:
    """A row a figure.

    Args:
        figures: of this engine.
        peer: another engine's name and figures; None: no column.
    """
    table = Table(title="suite", title_justify="left")
    table.add_column("")
    columns = ["this engine", "floor", "of floor"]
    name, others = peer or ("", {})
    if peer is not None:
        columns += [name, f"of {name}"]
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for figure in figures:
        cells = [_number(figure.value), _number(figure.floor), _ratio(figure, figure.floor)]
        if peer is not None:
            other = others.get(figure.name)
            cells += [_number(other), _ratio(figure, other)]
        table.add_row(figure.name, *cells)
    return table


def plot_suite(
    path: Path, figures: Sequence[Figure], peer: tuple[str, Mapping[str, float]] | None
) -> None:
    """Draw decode step and prefill over the batch: this engine, the floor, the peer.

    Args:
        path: written; .png, .svg or .pdf.
        figures: of this engine.
        peer: another engine's name and figures; None: no line.

    Raises: ConfigError if the file cannot be written.
    """
    from matplotlib.figure import Figure as Picture  # an extra: "plot"

    picture = Picture(figsize=(10, 4), layout="constrained")
    axes = picture.subplots(1, 2)
    for axis, (pattern, label) in zip(axes, PLOTTED, strict=True):
        found = [(match, one) for one in figures if (match := pattern.fullmatch(one.name))]
        batches = [int(match[1]) for match, _ in found]
        lines: dict[str, list[float | None]] = {
            "this engine": [one.value for _, one in found],
            "floor": [one.floor for _, one in found],
        }
        if peer is not None:
            lines[peer[0]] = [peer[1].get(one.name) for _, one in found]
        for name, values in lines.items():
            known = [(x, y) for x, y in zip(batches, values, strict=True) if y is not None]
            style = "--k" if name == "floor" else "-o"
            axis.plot([x for x, _ in known], [y for _, y in known], style, label=name)
        axis.set(xlabel="batch", ylabel=label, xscale="log", ylim=(0, None))
        axis.legend()
    try:
        picture.savefig(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--plot {path} cannot be written: {error}") from None


def _ratio(figure: Figure, other: float | None) -> str:
    return "-" if not other else f"{figure.value / other:.2f}x"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}" if value < 100 else f"{value:.1f}"


def read_peer(path: Path) -> tuple[str, dict[str, float]]:
    """Another run's engine and figures: one of ours, or any JSON object that names figures so.

    Raises: ConfigError if the file cannot be read or holds no figure.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--peer {path} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"--peer {path}: give a JSON object of figures")
    figures = found.get("figures", found)
    known = {
        name: float(value)
        for name, value in (figures.items() if isinstance(figures, Mapping) else ())
        if name.endswith(("_ms", "_tok_s")) and isinstance(value, (int, float))
    }
    if not known:
        raise ConfigError(f"--peer {path} holds no figure such as tpot1_ms")
    return str(found.get("engine", path.stem)), known
