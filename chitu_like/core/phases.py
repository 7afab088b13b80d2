"""What a start spends its time on: phases that follow each other without a gap."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

_STAT = Path("/proc/self/stat")
_STARTED = 19  # of the fields behind the name: when this process began, in ticks since the boot


class Phases:
    """Seconds of each phase so far.

    Args:
        before_s: seconds that went by before; they belong to the first phase.
        clock: seconds that never go back.
    """

    def __init__(
        self, before_s: float = 0.0, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._last_s = clock() - before_s
        self._seconds: dict[str, float] = {}

    def end(self, name: str) -> None:
        """The phase that runs now ends, and is called `name`; a name that was there grows."""
        now_s = self._clock()
        self._seconds[name] = self._seconds.get(name, 0.0) + now_s - self._last_s
        self._last_s = now_s

    @property
    def seconds(self) -> dict[str, float]:
        """By name, in order."""
        return dict(self._seconds)


def process_age_s() -> float:
    """Seconds since this process was started; 0 where the system does not say (not Linux)."""
    try:
        fields = _STAT.read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    started_s = int(fields[_STARTED]) / os.sysconf("SC_CLK_TCK")
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started_s)
