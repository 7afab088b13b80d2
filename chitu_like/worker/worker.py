"""A rank that is not the leader: it follows the leader's orders until told to stop."""

from __future__ import annotations

import faulthandler
import logging
import os
import queue
import signal
import threading
import time

import torch

from chitu_like.core.ending import DONE, FAILED, LAST_WORDS_S, USER_MISTAKE
from chitu_like.core.errors import ChituError, PeerError
from chitu_like.core.garbage import freeze_loaded_objects
from chitu_like.distributed.channel import WorkerChannel
from chitu_like.worker.local_rank import LocalRank
from chitu_like.worker.messages import (
    Allocate,
    Execute,
    Executed,
    Failed,
    FromWorker,
    Load,
    Plan,
    Prepare,
    Stop,
    ToWorker,
)
from chitu_like.worker.pending_step import PendingStep

logger = logging.getLogger(__name__)

AWAITED_LAST_WORDS_S = 1.0
"""Where ranks meet or compute, the leader may wait for this very one: its end sets the leader free."""


class Worker:
    """One rank of an instance, in the main thread of its process.

    Args:
        rank: its part of the model.
        channel: to the leader.
    """

    def __init__(self, rank: LocalRank, channel: WorkerChannel[ToWorker, FromWorker]) -> None:
        self._rank = rank
        self._channel = channel
        self._step_id: int | None = None
        self._launched: queue.SimpleQueue[PendingStep] = queue.SimpleQueue()
        self._reporter: threading.Thread | None = None

    def run(self) -> int:
        """Follow orders until Stop, the leader's end or a failure.

        Signals to stop are for the leader, who drains first: they are ignored here.

        Returns: the exit code: 0 stopped, 1 something broke, 2 the user's mistake.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        faulthandler.register(signal.SIGUSR1, all_threads=True)
        while not isinstance(order := self._next_order(), Stop):
            if order is None:
                return _outlast_leader(FAILED)
            try:
                self._follow(order)
            except Exception as error:
                return self._fail(error)
        self._rank.leave()
        self._channel.close()
        return DONE

    def _next_order(self) -> ToWorker | None:
        """What the leader says; None where it is gone."""
        try:
            return self._channel.receive()
        except PeerError as error:
            logger.error("%s", error)
            return None

    def _follow(self, order: ToWorker) -> None:
        if isinstance(order, Execute):
            self._execute(order)
        elif isinstance(order, Prepare):
            self._channel.send(self._rank.prepare(order))
        elif isinstance(order, Load):
            self._channel.send(self._rank.load(order))
        elif isinstance(order, Plan):
            self._channel.send(self._rank.plan(order))
        elif isinstance(order, Allocate):
            allocated = self._rank.allocate(order)
            freeze_loaded_objects()  # batches come next
            self._channel.send(allocated)

    def _execute(self, order: Execute) -> None:
        """Launch a batch; its result is waited for beside, so that the next can be launched."""
        self._step_id = order.batch.step_id
        pending = self._rank.runner.launch(order.batch)
        if not self._rank.runner.samples:
            return
        if self._reporter is None:
            self._reporter = threading.Thread(target=self._report, name="reporter", daemon=True)
            self._reporter.start()
        self._launched.put(pending)

    def _report(self) -> None:
        """Send results in the order of the batches, for ever."""
        device = self._rank.runner.device
        if device.type == "cuda":  # a thread begins on device 0, where a wait would take memory
            torch.cuda.set_device(device)
        try:
            while True:
                self._channel.send(Executed(self._launched.get().result()))
        except PeerError as error:
            logger.info("%s", error)  # the main thread hears it too
        except Exception as error:
            code = self._fail(error)
            logging.shutdown()
            os._exit(code)  # the main thread waits for orders that mean nothing any more

    def _fail(self, error: Exception) -> int:
        """Tell the log everything and the leader one sentence; the exit code, when it is time to end."""
        at = "" if self._step_id is None else f" at step {self._step_id}"
        is_users_mistake = isinstance(error, ChituError) and not isinstance(error, PeerError)
        trace = None if is_users_mistake else error
        logger.error("this rank failed%s: %s", at, _sentence(error), exc_info=trace)
        code = USER_MISTAKE if is_users_mistake else FAILED
        is_loading = self._step_id is None
        try:
            self._channel.send(Failed(_sentence(error), is_users_mistake, self._step_id))
            if not (is_loading and is_users_mistake):
                time.sleep(AWAITED_LAST_WORDS_S)
                return code
            self._wait_for_leader()
            self._channel.close()  # the leader waits for that before it speaks
        except PeerError as lost:
            logger.info("%s", lost)
        return _outlast_leader(code) if is_loading else code

    def _wait_for_leader(self) -> None:
        """Stay while the leader, who may still be loading, hears of it. Raises: PeerError then."""
        while not isinstance(self._channel.receive(), Stop):
            pass


def _outlast_leader(code: int) -> int:
    """Wait until torchrun says that the leader has ended; `code` is the exit code."""
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(code))
    time.sleep(LAST_WORDS_S)
    return code


def _sentence(error: Exception) -> str:
    if isinstance(error, ChituError):
        return str(error)
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
