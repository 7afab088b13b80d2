"""How a batch reaches whatever computes it."""

from __future__ import annotations

from typing import Protocol

from chitu_like.core.batch import ScheduledBatch
from chitu_like.core.output import StepOutput


class Executor(Protocol):
    """The other end of the engine: real ranks, a simulated device or a fake.

    Every stage computes the batches in the order they were submitted, and they are collected in that
    order. So a batch may rely on what the one before it stored, even while that one is in flight;
    but what it sampled can be used as an input only by the batch num_stages later.
    """

    @property
    def max_in_flight(self) -> int:
        """Batches that may be submitted and not yet collected.

        One a pipeline stage; with overlap one more, which waits for the first stage while the host
        takes in the oldest.
        """
        ...

    def submit(self, batch: ScheduledBatch) -> None:
        """Send a batch. Must not be called with max_in_flight batches in flight."""
        ...

    def wait(self, timeout_s: float) -> bool:
        """Whether to `collect` now, after waiting for the oldest batch up to `timeout_s`.

        False: it is not through, and what is submitted meanwhile can start before it is, as in the
        first stages of a pipeline. One stage computes batch after batch, so there it is always true.

        Raises:
            PeerError: as `collect`.
        """
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
