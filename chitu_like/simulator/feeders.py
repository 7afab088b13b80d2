"""Who sends requests to nodes that hold layers: as many as fit, or each when it comes (Helix, ASPLOS'25)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

from chitu_like.simulator.clock import VirtualClock
from chitu_like.simulator.workload import PlannedRequest

FIRST_REQUESTS = 20
GAP_S = 0.1

Submit = Callable[[PlannedRequest, float], bool]
"""Takes a request that came at a time, or says that there is no way for it now."""


class Feeder(Protocol):
    """Submits requests while a simulation runs."""

    def start(self, start_s: float) -> None:
        """Begin at a time that has not passed."""
        ...

    def freed(self) -> None:
        """A prompt or a whole request was finished now."""
        ...

    @property
    def num_waiting(self) -> int:
        """Requests that have come and found no way yet."""
        ...

    @property
    def is_done(self) -> bool:
        """Whether there are no more requests."""
        ...


class OfflineFeeder:
    """As many requests as fit: 20 at first, then one more for each prompt or request that is finished.

    A request comes when there is a way for it: until then it is the feeder's alone.

    Args:
        clock: of the simulation.
        requests: in their order, whenever they would come.
        submit: gets them.
        has_room: whether one more should be sent.
    """

    def __init__(
        self,
        clock: VirtualClock,
        requests: Iterator[PlannedRequest],
        submit: Submit,
        has_room: Callable[[], bool],
    ) -> None:
        self._clock = clock
        self._requests = requests
        self._submit = submit
        self._has_room = has_room
        self._next = next(requests, None)

    def start(self, start_s: float) -> None:
        """See Feeder."""
        for index in range(FIRST_REQUESTS):
            self._clock.at(start_s + index * GAP_S, self._feed)

    def freed(self) -> None:
        """See Feeder."""
        if self._next is not None:
            self._clock.after(GAP_S, self._feed_if_room)

    @property
    def num_waiting(self) -> int:
        """None has come before there is a way for it."""
        return 0

    @property
    def is_done(self) -> bool:
        """See Feeder."""
        return self._next is None

    def _feed_if_room(self) -> None:
        if self._has_room():
            self._feed()

    def _feed(self) -> None:
        if self._next is not None and self._submit(self._next, self._clock.now_s):
            self._next = next(self._requests, None)


class OnlineFeeder:
    """Each request when it comes; while there is no way for it, those behind it wait too.

    Args:
        clock: of the simulation.
        requests: by arrival time.
        submit: gets them.
    """

    def __init__(
        self, clock: VirtualClock, requests: Iterator[PlannedRequest], submit: Submit
    ) -> None:
        self._clock = clock
        self._requests = requests
        self._submit = submit
        self._start_s = 0.0
        self._next = next(requests, None)
        self._waiting: deque[PlannedRequest] = deque()

    def start(self, start_s: float) -> None:
        """See Feeder."""
        self._start_s = start_s
        self._await_next()

    def freed(self) -> None:
        """See Feeder."""
        while self._waiting and self._submit(self._waiting[0], self._came_s(self._waiting[0])):
            self._waiting.popleft()

    @property
    def num_waiting(self) -> int:
        """See Feeder."""
        return len(self._waiting)

    @property
    def is_done(self) -> bool:
        """See Feeder."""
        return self._next is None and not self._waiting

    def _came_s(self, request: PlannedRequest) -> float:
        return self._start_s + request.arrival_s

    def _await_next(self) -> None:
        if self._next is not None:
            self._clock.at(self._came_s(self._next), self._arrive)

    def _arrive(self) -> None:
        if self._next is not None:
            self._waiting.append(self._next)
            self._next = next(self._requests, None)
            self._await_next()
            self.freed()
