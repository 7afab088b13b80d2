"""How far loading is: a bar with GB/s on a terminal, else a log line every few seconds."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 5.0


class LoadProgress(Protocol):
    """Told of each tensor; a context manager around the loading."""

    def advance(self, num_bytes: int) -> None:
        """So many bytes more are loaded."""
        ...

    def __enter__(self) -> LoadProgress: ...

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


def make_progress(total_bytes: int, what: str = "loading weights") -> LoadProgress:
    """The bar where somebody watches standard error, else the log lines; `what` is being done."""
    if sys.stderr.isatty():
        return BarProgress(total_bytes, Console(stderr=True), what)
    return LogProgress(total_bytes, what)


class QuietProgress:
    """For ranks that do not report."""

    def __enter__(self) -> QuietProgress:
        """Nothing to show."""
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to end."""

    def advance(self, num_bytes: int) -> None:
        """See LoadProgress."""


class LogProgress:
    """One line every SECONDS_BETWEEN_LINES, so short loads write none."""

    def __init__(self, total_bytes: int, what: str = "loading weights") -> None:
        self._what = what
        self._total_bytes = total_bytes
        self._num_bytes = 0
        self._start_s = self._last_s = time.perf_counter()

    def __enter__(self) -> LogProgress:
        """Start the clock."""
        self._start_s = self._last_s = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        """The report says how it ended."""

    def advance(self, num_bytes: int) -> None:
        """See LoadProgress."""
        self._num_bytes += num_bytes
        now_s = time.perf_counter()
        if now_s - self._last_s >= SECONDS_BETWEEN_LINES:
            self._last_s = now_s
            logger.info(
                "%s: %.1f of %.1f GB, %.2f GB/s",
                self._what,
                self._num_bytes / 1e9,
                self._total_bytes / 1e9,
                self._num_bytes / 1e9 / (now_s - self._start_s),
            )


class BarProgress:
    """A bar with bytes, bytes/s and the time left."""

    def __init__(self, total_bytes: int, console: Console, what: str = "loading weights") -> None:
        self._progress = Progress(
            TextColumn(what),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._progress.add_task("load", total=total_bytes)

    def __enter__(self) -> BarProgress:
        """Draw it."""
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave its last state on the screen."""
        self._progress.stop()

    def advance(self, num_bytes: int) -> None:
        """See LoadProgress."""
        self._progress.advance(self._task, num_bytes)
