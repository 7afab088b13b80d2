"""The same load at one rate after the other: where latency turns up, and how much a server keeps up with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from chitu_like.bench.latency import ServingSummary, Spread
from chitu_like.core.errors import ConfigError

SATURATED = 0.5
"""With so small a share of requests inside the SLO, higher rates only take longer."""
CURVES = (
    ("ttft_s", "TTFT, ms"),
    ("tpot_s", "TPOT, ms"),
)


@dataclass(frozen=True, kw_only=True)
class RatePoint:
    """What a server did at one rate.

    Attributes:
        rate: requests/s that were offered.
        summary: of their answers.
    """

    rate: float
    summary: ServingSummary

    @property
    def is_saturated(self) -> bool:
        """Most requests miss the SLO."""
        attainment = self.summary.slo_attainment
        return attainment is not None and attainment < SATURATED

    def as_json(self) -> dict[str, object]:
        """As files hold it."""
        return {"rate": self.rate, **asdict(self.summary)}


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A sweep as a file holds it.

    Attributes:
        label: whose it is.
        points: by rate; each a RatePoint's JSON.
    """

    label: str
    points: Sequence[Mapping[str, object]]

    @classmethod
    def read(cls, label: str, path: Path) -> Curve:
        """Read what `--rates ... --json FILE` wrote. Raises: ConfigError if it is no such file."""
        try:
            points = json.loads(path.read_text(encoding="utf-8"))["sweep"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} holds no sweep of benchmark_serving: {error!r}") from None
        return cls(label=label, points=points)


def sweep_table(points: Sequence[RatePoint]) -> Table:
    """A row a rate; times in milliseconds."""
    table = Table(title="serving, by rate", title_justify="left")
    names = ("offered/s", "answered/s", "tokens/s", "TTFT p50", "p99", "TPOT p50", "p99")
    for name in (*names, "goodput", "in SLO", "failed"):
        table.add_column(name, justify="right")
    for point in points:
        summary = point.summary
        goodput, attainment = summary.goodput, summary.slo_attainment
        table.add_row(
            f"{point.rate:g}",
            f"{summary.requests_per_s:.2f}",
            f"{summary.output_tokens_per_s:.0f}",
            *_in_ms(summary.ttft_s),
            *_in_ms(summary.tpot_s),
            "-" if goodput is None else f"{goodput:.2f}",
            "-" if attainment is None else f"{attainment:.0%}",
            str(summary.num_failed),
        )
    return table


def plot_curves(path: Path, curves: Sequence[Curve]) -> None:
    """Draw TTFT, TPOT (p50 and dashed p99) and goodput over the rate, a colour a server.

    Raises: ConfigError if the file cannot be written.
    """
    from matplotlib.figure import Figure  # an extra: "plot"

    figure = Figure(figsize=(13, 4), layout="constrained")
    axes = figure.subplots(1, 3)
    for index, curve in enumerate(curves):
        rates = [_number(point, "rate") for point in curve.points]
        for axis, (name, label) in zip(axes, CURVES, strict=False):
            for percentile, style in (("p50", "-o"), ("p99", "--")):
                times = [_spread(point, name, percentile) * 1e3 for point in curve.points]
                axis.plot(
                    rates, times, style, color=f"C{index}", label=f"{curve.label} {percentile}"
                )
            axis.set(xlabel="requests/s offered", ylabel=label, yscale="log")
        served = [_number(point, "goodput", "requests_per_s") for point in curve.points]
        axes[2].plot(rates, served, "-o", color=f"C{index}", label=curve.label)
    axes[2].set(xlabel="requests/s offered", ylabel="goodput, requests/s", ylim=(0, None))
    for axis in axes:
        axis.legend()
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be written: {error}") from None


def _in_ms(spread: Spread | None) -> tuple[str, str]:
    if spread is None:
        return "-", "-"
    return f"{spread.p50 * 1e3:.1f}", f"{spread.p99 * 1e3:.1f}"


def _number(point: Mapping[str, object], *names: str) -> float:
    """The first of these figures that was taken; NaN, which plots leave out, for none."""
    found = next((point[name] for name in names if point.get(name) is not None), None)
    return float(found) if isinstance(found, (int, float)) else float("nan")


def _spread(point: Mapping[str, object], name: str, percentile: str) -> float:
    spread = point.get(name)
    return _number(spread, percentile) if isinstance(spread, Mapping) else float("nan")
