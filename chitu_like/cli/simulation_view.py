"""What is seen of a simulation while it runs: a bar, or with `simulate.watch=true` the system itself."""

from __future__ import annotations

import math
import time
from collections import Counter
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from chitu_like.simulator.recorder import FinishedRequest

REFRESH_S = 0.1
WINDOW_S = 10.0
"""Simulated seconds over which rates are shown."""
MAX_PLACES = 12


class SimulationView:
    """A context around a simulation that tells it of every answered request.

    Args:
        console: drawn on; nothing is drawn where it is no terminal.
        until_s: simulated seconds at the end; inf where nobody knows.
        watch: show rates, latencies and places, not only how far it is.
    """

    def __init__(self, console: Console, until_s: float, *, watch: bool) -> None:
        """Nothing is drawn before the context is entered."""
        self._watch = watch
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[now]}"),
            TimeElapsedColumn(),
            auto_refresh=False,
        )
        total = until_s if math.isfinite(until_s) else None
        self._task = self._progress.add_task("simulating", total=total, now="")
        self._is_shown = console.is_terminal
        self._drawn_s = -math.inf
        self._now_s = 0.0
        self._recent: list[FinishedRequest] = []
        self._places: Counter[str] = Counter()
        self.num_finished = 0
        self._live = Live(self._drawing(), console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> SimulationView:
        """Begin to draw."""
        if self._is_shown:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the screen as it was."""
        if self._is_shown:
            self._live.stop()

    def finished(self, request: FinishedRequest) -> None:
        """A request was answered."""
        self.num_finished += 1
        if not self._is_shown:
            return
        self._recent.append(request)
        self._places[request.place] += 1
        self.reached(request.finished_s)

    def reached(self, now_s: float) -> None:
        """The simulation shows this time."""
        self._now_s = now_s
        wall_s = time.monotonic()
        if not self._is_shown or wall_s - self._drawn_s < REFRESH_S:
            return
        self._drawn_s = wall_s
        self._recent = [one for one in self._recent if one.finished_s > now_s - WINDOW_S]
        shown = f"{now_s:,.1f} s simulated, {self.num_finished:,} requests answered"
        self._progress.update(self._task, completed=now_s, now=shown)
        self._live.update(self._drawing(), refresh=True)

    def _drawing(self) -> Group:
        return Group(self._progress, self._system()) if self._watch else Group(self._progress)

    def _system(self) -> Table:
        table = Table(title=f"the last {WINDOW_S:g} simulated seconds", show_header=False)
        recent, span_s = self._recent, min(WINDOW_S, self._now_s)
        tokens_in = sum(one.input_len for one in recent)
        tokens_out = sum(one.output_len for one in recent)
        tpots = [one.tpot_s for one in recent if one.tpot_s is not None]
        rows = {
            "requests answered / s": _mean(len(recent), span_s),
            "their prompt tokens / s": _mean(tokens_in, span_s),
            "their output tokens / s": _mean(tokens_out, span_s),
            "mean TTFT, ms": _mean(1e3 * sum(one.ttft_s for one in recent), len(recent)),
            "mean TPOT, ms": _mean(1e3 * sum(tpots), len(tpots)),
        }
        for name, shown in rows.items():
            table.add_row(name, shown)
        table.add_section()
        for place, count in self._places.most_common(MAX_PLACES):
            table.add_row(place, f"{count:,} requests so far")
        return table


def _mean(total: float, count: float) -> str:
    return f"{total / count:,.1f}" if count else "-"
