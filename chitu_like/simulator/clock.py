"""Virtual time: events happen in order, and nothing between them takes any."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable


class VirtualClock:
    """Seconds that pass only from one event to the next.

    Events of the same instant happen in the order in which they were set.

    Attributes:
        now_s: what the clock shows; 0 at the start.
    """

    def __init__(self) -> None:
        self.now_s = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()

    def __call__(self) -> float:
        """What the clock shows."""
        return self.now_s

    def at(self, time_s: float, event: Callable[[], None]) -> None:
        """Let `event` happen at a time that has not passed."""
        assert time_s >= self.now_s, f"{time_s} s is past at {self.now_s} s"
        heapq.heappush(self._events, (time_s, next(self._count), event))

    def after(self, delay_s: float, event: Callable[[], None]) -> None:
        """Let `event` happen in a while."""
        self.at(self.now_s + delay_s, event)

    def run(self, until_s: float = float("inf")) -> None:
        """Let everything happen that is set before `until_s`, then show that time if it is finite."""
        while self._events and self._events[0][0] < until_s:
            self.now_s, _, event = heapq.heappop(self._events)
            event()
        if until_s < float("inf"):
            self.now_s = max(self.now_s, until_s)
