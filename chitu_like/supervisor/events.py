"""What happens to a supervisor beside messages; one thread takes both from one queue."""

from __future__ import annotations

import queue
import signal
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Generic, TypeVar

Event = TypeVar("Event")


@dataclass(frozen=True, kw_only=True)
class Signalled:
    """SIGTERM or SIGINT came."""

    number: int


@dataclass(frozen=True, kw_only=True)
class HeadLost:
    """The head's supervisor is gone, and with it the job."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class SupervisorLost:
    """Another supervisor is gone; torchrun will end the job."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class InstanceLost:
    """The front end gave an instance up."""

    instance: int


@dataclass(frozen=True, kw_only=True)
class FrontEndEnded:
    """The front end is gone: code 0 says that it has drained."""

    code: int
    reason: str


class EventQueue(Generic[Event]):
    """Events in the order they came. Any thread and any signal handler may put."""

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()

    def put(self, event: Event) -> None:
        """Add an event; never waits."""
        self._events.put(event)

    def get(self, timeout_s: float | None = None) -> Event | None:
        """Wait for the next event; None where none came in time."""
        try:
            return self._events.get(timeout=timeout_s)
        except queue.Empty:
            return None


def take_signals(put: Callable[[Signalled], None]) -> None:
    """Turn SIGTERM and SIGINT into events from now on."""

    def note(number: int, frame: FrameType | None) -> None:
        put(Signalled(number=number))

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, note)
