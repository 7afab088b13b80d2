"""How a batch reaches whatever computes it."""

from __future__ import annotations

from typing import Protocol

from chitu_like.core.batch import ScheduledBatch
from chitu_like.core.output import StepOutput


class Executor(Protocol):
    """The other end of the engine: real ranks, a simulated device or a fake.

    Batches are computed in the order they were submitted and collected in that order. So a batch may
    rely on what the one before it stored, even while that one is still in flight.
    """

    @property
    def max_in_flight(self) -> int:
        """Batches that may be submitted and not yet collected; at least 1."""
        ...

    def submit(self, batch: ScheduledBatch) -> None:
        """Send a batch. Must not be called with max_in_flight batches in flight."""
        ...

    def collect(self) -> StepOutput:
        """Wait for the oldest batch in flight and take its output.

        Raises:
            PeerError: whatever computes it died; no later call will succeed.
        """
        ...

    def shutdown(self) -> None:
        """Stop whatever computes, dropping batches in flight. May be called twice."""
        ...
