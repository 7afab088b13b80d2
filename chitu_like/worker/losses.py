"""What a leader does when it loses a rank: say which and when, and never hang."""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

from chitu_like.core.errors import ChituError, PeerError
from chitu_like.distributed.channel import LeaderChannel
from chitu_like.worker.messages import Failed, FromWorker, ToWorker

Channel: TypeAlias = LeaderChannel[ToWorker, FromWorker]

logger = logging.getLogger(__name__)

GRACE_S = 1.0
"""From the loss of a rank to the leader's end, unless its main thread ends it in good order. On CPUs a
collective fails within milliseconds when a peer dies; beside one that stands still it never ends."""
CAUSE_TIMEOUT_S = 1.0
"""A collective may fail sooner than the control channel knows whose fault it is."""


class Losses:
    """Told by the control channel, in the channel's thread, that a rank is lost.

    The main thread may wait in a collective that will never end, or have nothing to do with other ranks
    for hours. So this process is ended for it, unless it notices in time.

    Args:
        ranks: world ranks of the instance, the leader first.
        grace_s: from a loss to this process's end.

    Attributes:
        channel: to the workers; what a lost rank said last is in it. None until there is one.
        doing: what all ranks are at: "at step 57".
        has_failed: whether a rank is lost or said that it failed; nothing can be computed any more.
    """

    def __init__(self, ranks: Sequence[int], *, grace_s: float = GRACE_S) -> None:
        self.channel: Channel | None = None
        self.doing = "at the start"
        self.has_failed = False
        self._ranks = ranks
        self._grace_s = grace_s
        self._lost: tuple[int, str] | None = None
        self._happened = threading.Event()
        self._noticed = threading.Event()

    @property
    def num_workers(self) -> int:
        """Ranks beside the leader."""
        return len(self._ranks) - 1

    def __call__(self, rank: int, reason: str) -> None:
        """The rank with this number in the instance is lost."""
        self._lost = (rank, f"rank {self._ranks[rank]} was lost {self.doing}: {reason}")
        self.has_failed = True
        self._happened.set()
        if self._noticed.is_set():  # it said before that it would end
            return
        logger.error("%s", self._lost[1])
        threading.Thread(target=self._end_unless_noticed, name="last-grace", daemon=True).start()

    def failure(self, rank: int, failed: Failed) -> ChituError:
        """What to raise where a rank said that it failed; perhaps because another is lost."""
        self.has_failed = True
        self._noticed.set()
        if failed.is_users_mistake:
            return ChituError(f"{failed.reason} (rank {self._ranks[rank]})")
        if self._happened.wait(CAUSE_TIMEOUT_S) and self._lost and self._lost[0] != rank:
            return PeerError(self._lost[1])
        return PeerError(self._failure_sentence(rank, failed))

    @contextmanager
    def explained(self) -> Iterator[None]:
        """A part of the main thread's work: if a lost rank made it fail, that is what is raised.

        Raises: PeerError that names the rank; any other exception as it was.
        """
        try:
            yield
        except Exception as error:
            self.has_failed = True
            is_own_word = isinstance(error, ChituError) and not isinstance(error, PeerError)
            if is_own_word or self._noticed.is_set() or not self._happened.wait(CAUSE_TIMEOUT_S):
                raise
            self._noticed.set()
            raise PeerError(self._find_cause()) from error

    def _find_cause(self) -> str:
        """What the lost rank itself said before it ended, else how it was lost."""
        assert self._lost is not None, "nobody is lost"
        lost_rank, sentence = self._lost
        while self.channel is not None:
            try:
                rank, message = self.channel.receive(timeout_s=0)
            except (TimeoutError, PeerError):  # it said nothing more
                break
            if rank == lost_rank and isinstance(message, Failed):
                return self._failure_sentence(rank, message)
        return sentence

    def _failure_sentence(self, rank: int, failed: Failed) -> str:
        at = self.doing if failed.step_id is None else f"at step {failed.step_id}"
        return f"rank {self._ranks[rank]} failed {at}: {failed.reason}"

    def _end_unless_noticed(self) -> None:
        if self._noticed.wait(self._grace_s):
            return
        logger.error("%s: this process ends", self._find_cause())
        faulthandler.dump_traceback(all_threads=True)
        logging.shutdown()
        os._exit(1)
