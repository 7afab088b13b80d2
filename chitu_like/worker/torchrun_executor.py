"""The Executor of an instance of several ranks: the leader computes its part, the workers theirs."""

from __future__ import annotations

from collections import deque

from chitu_like.core.batch import ScheduledBatch
from chitu_like.core.errors import PeerError
from chitu_like.core.output import StepOutput
from chitu_like.worker.executor import LocalExecutor
from chitu_like.worker.local_rank import LocalRank
from chitu_like.worker.losses import Channel, Losses
from chitu_like.worker.messages import Execute, Executed, Failed, FromWorker, Stop

STOP_TIMEOUT_S = 5.0
"""A worker that was told to stop has only its groups to drop."""


class TorchrunExecutor:
    """Sends each batch down the channel, then runs this rank's part of it.

    Args:
        own: the leader's rank, loaded and allocated; nobody else may use it from now on.
        channel: to the workers, who are allocated too; closed by `shutdown`.
        losses: told by the channel of lost ranks.
        overlap: a batch more may be submitted than there are stages.
    """

    def __init__(self, own: LocalRank, channel: Channel, losses: Losses, *, overlap: bool) -> None:
        parallel = own.runner.options.parallel
        self._own = own
        self._channel = channel
        self._losses = losses
        self._max_in_flight = parallel.pp_size + (1 if overlap else 0)
        self._local = LocalExecutor(own.runner, max_in_flight=self._max_in_flight)
        self._is_sampled_here = own.runner.samples
        self._step_ids: deque[int] = deque()
        self._arrived: tuple[int, FromWorker] | None = None
        self._is_shut_down = False
        losses.doing = "idle before the first step"

    @property
    def max_in_flight(self) -> int:
        """See Executor."""
        return self._max_in_flight

    def submit(self, batch: ScheduledBatch) -> None:
        """See Executor. Raises: PeerError that names a lost rank, or after shutdown."""
        if self._is_shut_down:
            raise PeerError("the ranks of this instance were stopped")
        self._note_step(batch.step_id)
        with self._losses.explained():
            self._channel.send(Execute(batch))
            self._local.submit(batch)

    def wait(self, timeout_s: float) -> bool:
        """See Executor. Raises: as `collect`."""
        if self._is_sampled_here or self._arrived is not None:
            return True
        with self._losses.explained():
            try:
                self._arrived = self._channel.receive(timeout_s)
            except TimeoutError:
                return False
        return True

    def collect(self) -> StepOutput:
        """See Executor.

        Raises:
            PeerError: a rank is lost or has failed; the message names it and the step.
            Exception: what went wrong in this process's own part.
        """
        with self._losses.explained():
            output = self._local.collect()
            if not self._is_sampled_here:
                output = self._receive()
        step_id = self._step_ids.popleft()
        if self._step_ids:
            self._note_step()
        else:
            self._losses.doing = f"idle after step {step_id}"
        return output

    def shutdown(self) -> None:
        """See Executor. The workers compute what they were sent, then end."""
        if self._is_shut_down:
            return
        self._is_shut_down = True
        if self._losses.has_failed:  # this process cannot wait for a part that may never end
            self._local.abandon()
            self._channel.close()
            return
        while (
            self._step_ids
        ):  # every rank computes every batch, else they would wait for each other
            self.collect()
        self._local.shutdown()
        self._channel.stop(Stop(), STOP_TIMEOUT_S)
        self._own.leave()

    def _receive(self) -> StepOutput:
        """The output of the rank that samples."""
        rank, message = self._arrived or self._channel.receive()
        self._arrived = None
        if isinstance(message, Failed):
            raise self._losses.failure(rank, message)
        if not isinstance(message, Executed):
            raise PeerError(f"rank {rank} of the instance sent {type(message).__name__} in a step")
        return message.output

    def _note_step(self, submitted: int | None = None) -> None:
        """Let a loss be logged with the oldest step that is not through."""
        if submitted is not None:
            self._step_ids.append(submitted)
        self._losses.doing = f"at step {self._step_ids[0]}"
