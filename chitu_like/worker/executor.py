"""The Executor of a single rank: the engine and its worker share one process."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import torch

from chitu_like.core.batch import ScheduledBatch
from chitu_like.core.errors import PeerError
from chitu_like.core.output import StepOutput
from chitu_like.worker.model_runner import ModelRunner


class _Result(Protocol):
    """Something whose result can be waited for."""

    def result(self) -> StepOutput: ...


class LocalExecutor:
    """Runs batches on this process's own ModelRunner.

    A CUDA device works beside the caller by itself. On a CPU a thread does, so that the engine
    schedules the next step meanwhile: torch computes without holding Python's lock.

    Args:
        runner: loaded and allocated; nobody else may use it from now on.
        max_in_flight: batches that may be submitted and not yet collected; with more than one, others
            may be submitted while the first is computed.
    """

    def __init__(self, runner: ModelRunner, *, max_in_flight: int) -> None:
        self._runner = runner
        self._max_in_flight = max_in_flight
        self._in_flight: deque[_Result] = deque()
        self._has_failed = False
        self._is_shut_down = False
        self._thread: ThreadPoolExecutor | None = None
        if max_in_flight > 1 and runner.device.type == "cpu":
            num_threads = torch.get_num_threads()
            self._thread = ThreadPoolExecutor(
                1,
                "model-runner",
                # OpenMP counts threads per calling thread: this one would start with its default.
                initializer=lambda: torch.set_num_threads(num_threads),
            )

    @property
    def max_in_flight(self) -> int:
        """See Executor."""
        return self._max_in_flight

    def submit(self, batch: ScheduledBatch) -> None:
        """See Executor. A failure shows when the batch is collected.

        Raises: PeerError after shutdown.
        """
        if self._is_shut_down:
            raise PeerError("the model runner was shut down")
        assert len(self._in_flight) < self._max_in_flight, "more batches than max_in_flight"
        if self._thread is not None:
            self._in_flight.append(self._thread.submit(self._execute, batch))
        else:
            self._in_flight.append(self._launch(batch))

    def wait(self, timeout_s: float) -> bool:
        """See Executor: nothing could start before the oldest batch is through."""
        return True

    def collect(self) -> StepOutput:
        """See Executor. What went wrong in the runner is raised here as it was, once.

        Raises: PeerError if a batch failed before, or there is nothing to collect.
        """
        if not self._in_flight:
            raise PeerError("nothing was submitted to the model runner, or it was shut down")
        try:
            output = self._in_flight[0].result()
        except Exception:
            self._in_flight.popleft()
            self._has_failed = True  # the device may fail long after the launch
            raise
        # Only now: an interrupted wait leaves the batch to the next call.
        self._in_flight.popleft()
        return output

    def shutdown(self) -> None:
        """See Executor. Waits for the step that is being computed, if any."""
        self._is_shut_down = True
        self._in_flight.clear()
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)

    def abandon(self) -> None:
        """Shut down without waiting: the step that is being computed may never end."""
        self._is_shut_down = True
        self._in_flight.clear()
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def _execute(self, batch: ScheduledBatch) -> StepOutput:
        """Compute a batch now; behind a failure none, as the cache is not what it should be."""
        if self._has_failed:
            raise PeerError("the model runner failed in an earlier step")
        try:
            return self._runner.execute(batch)
        except Exception:
            self._has_failed = True
            raise

    def _launch(self, batch: ScheduledBatch) -> _Result:
        """Queue a batch on the device; what fails already now is kept for collect."""
        if self._has_failed:
            return _Failed(PeerError("the model runner failed in an earlier step"))
        try:
            return self._runner.launch(batch)
        except Exception as failure:
            self._has_failed = True
            return _Failed(failure)


class _Failed:
    """A batch that could not be launched."""

    def __init__(self, failure: Exception) -> None:
        self._failure = failure

    def result(self) -> StepOutput:
        raise self._failure
