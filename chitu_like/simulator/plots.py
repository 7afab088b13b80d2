"""Pictures of results: what happened over time, how latencies are spread, attainment over SLO scale.

matplotlib is an extra, asked for when a picture is drawn.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from chitu_like.core.errors import ConfigError, UnsupportedError
from chitu_like.simulator.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LATENCIES = {"ttft_s": "TTFT", "tpot_s": "TPOT", "e2e_s": "E2E"}
MAX_LINES = 12
"""More lines in one picture can no longer be told apart."""


def check_plotting() -> None:
    """Raises: UnsupportedError, with the line that installs it, where matplotlib is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UnsupportedError("plots need matplotlib: pip install 'chitu-like[plot]'")


def plot_timeline(path: Path, results: Results) -> None:
    """Tokens a second, requests, KV use and busy nodes over simulated time.

    Raises: UnsupportedError without matplotlib; ConfigError if the file cannot be written.
    """
    figure = _figure(10, 9)
    tokens, requests, kv, busy = figure.subplots(4, 1, sharex=True)
    line = results.timeline
    _lines(tokens, line, {"prompt_tokens": "prompt", "output_tokens": "output"})
    tokens.set_ylabel("tokens/s")
    _lines(requests, line, {"arrived": "arrived/s", "finished": "finished/s"})
    for kind in ("running", "waiting"):
        _sum(requests, line, kind)
    requests.set_ylabel("requests")
    _lines(kv, line, {name: name[:-3] for name in line if name.endswith(".kv")})
    kv.set_ylabel("KV use")
    _lines(busy, line, {name: name[:-5] for name in line if name.endswith(".busy")})
    busy.set_ylabel("busy")
    busy.set_xlabel("simulated time (s)")
    _save(figure, path)


def plot_latencies(path: Path, runs: Mapping[str, Results]) -> None:
    """CDFs of TTFT, TPOT and E2E, one line for each named run, with the SLO where there is one.

    Raises: UnsupportedError without matplotlib; ConfigError if the file cannot be written.
    """
    figure = _figure(12, 4)
    for axes, (key, title) in zip(figure.subplots(1, 3), LATENCIES.items(), strict=True):
        for name, results in runs.items():
            _curve(axes, results.cdfs.get(key, ()), name)
            bound = getattr(results.slo, key, None)
            if bound is not None:
                axes.axvline(bound, color="grey", linestyle=":")
        axes.set_xscale("log")
        axes.set_xlabel(f"{title} (s)")
        axes.set_ylabel("share of requests")
        _legend(axes)
    _save(figure, path)


def plot_attainment(path: Path, runs: Mapping[str, Results]) -> None:
    """Share of requests that keep the SLO with its bounds multiplied, one line for each named run.

    Raises: UnsupportedError without matplotlib; ConfigError if the file cannot be written.
    """
    figure = _figure(6, 4)
    axes = figure.subplots()
    for name, results in runs.items():
        _curve(axes, results.cdfs.get("slo_scale", ()), name)
    axes.axvline(1.0, color="grey", linestyle=":")
    axes.axhline(0.9, color="grey", linestyle=":")
    axes.set_xscale("log")
    axes.set_xlabel("SLO scale")
    axes.set_ylabel("SLO attainment")
    _legend(axes)
    _save(figure, path)


def _figure(width: float, height: float) -> Figure:
    check_plotting()
    from matplotlib.figure import Figure  # an extra: "plot"

    return Figure(figsize=(width, height), layout="constrained")


def _lines(axes: Axes, line: Mapping[str, Sequence[float]], names: Mapping[str, str]) -> None:
    for name in [name for name in names if name in line][:MAX_LINES]:
        axes.plot(line["time_s"], line[name], label=names[name])
    _legend(axes)


def _sum(axes: Axes, line: Mapping[str, Sequence[float]], kind: str) -> None:
    """The sum over nodes of columns `NODE.kind`."""
    columns = [values for name, values in line.items() if name.endswith(f".{kind}")]
    if columns:
        axes.plot(line["time_s"], [sum(row) for row in zip(*columns, strict=True)], label=kind)
        _legend(axes)


def _curve(axes: Axes, points: Sequence[tuple[float, float]], name: str) -> None:
    if points:
        values, shares = zip(*points, strict=True)
        axes.plot(values, shares, label=name, drawstyle="steps-post")


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")


def _save(figure: Figure, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    except (OSError, ValueError) as error:  # ValueError: an ending that is no picture's
        raise ConfigError(f"{path} cannot be written: {error}") from None
