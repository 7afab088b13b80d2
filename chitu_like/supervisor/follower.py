"""The supervisor of any rank but world rank 0: it does what the head says, to the end of the job."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import TypeAlias

from chitu_like.core.ending import DONE, FAILED
from chitu_like.core.errors import PeerError
from chitu_like.distributed.channel import WorkerChannel
from chitu_like.supervisor.child import RANK_PROGRAM, RankChild
from chitu_like.supervisor.events import EventQueue, HeadLost, Signalled, take_signals
from chitu_like.supervisor.messages import (
    Begin,
    Ended,
    EndRanks,
    FromRank,
    FromSupervisor,
    Head,
    Listening,
    Over,
    ToSupervisor,
    Welcome,
)

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 30.0

_Event: TypeAlias = FromRank | ToSupervisor | Signalled | HeadLost


class Follower:
    """One rank, as its supervisor sees it.

    SIGTERM is the head's matter: it drains, and then says that the job is over. Before the head is
    found there is nothing to drain.

    Args:
        rank: of the world.
        silence_s: a head that says nothing for so long is gone.
        program: see RankChild.
    """

    def __init__(
        self, rank: int, *, silence_s: float, program: Sequence[str] = RANK_PROGRAM
    ) -> None:
        self._rank = rank
        self._silence_s = silence_s
        self._program = program
        self._events: EventQueue[_Event] = EventQueue()
        self._channel: WorkerChannel[ToSupervisor, FromSupervisor] | None = None
        self._child_code: int | None = None
        self._code: int | None = None

    def run(self, begin: Begin) -> int:
        """Run the rank until the job is over; the exit code."""
        take_signals(self._events.put)
        self._child = RankChild(self._rank, begin, self._events.put, self._program)
        try:
            while self._code is None:
                event = self._events.get()
                if event is not None:
                    self._take(event)
        finally:
            was_running = self._child.end()
            if self._channel is not None:
                self._channel.close()
        if not was_running:  # else it is ended because the job is, perhaps while it loads
            self._note_late_end()
        return self._code or (FAILED if self._child_code else DONE)

    def _take(self, event: _Event) -> None:
        if isinstance(event, Head):
            self._connect(event)
        elif isinstance(event, Welcome):
            self._child.send(event)
        elif isinstance(event, Listening):
            self._tell(event)
        elif isinstance(event, Ended):
            self._child_code = event.code
            if self._channel is None:
                logger.error("rank %d met nobody: %s", event.rank, event.reason)
                self._code = event.code or FAILED
            else:
                self._tell(event)
        elif isinstance(event, EndRanks):
            if self._rank in event.ranks and self._child_code is None:
                self._child.end_stuck()
        elif isinstance(event, Over):
            self._code = event.code
        elif isinstance(event, HeadLost):
            logger.error("the job is lost: %s", event.reason)
            self._code = FAILED
        elif isinstance(event, Signalled) and self._channel is None:
            self._code = DONE

    def _connect(self, head: Head) -> None:
        try:
            self._channel = WorkerChannel.connect(
                head.address,
                head.secret,
                rank=self._rank,
                to_worker=ToSupervisor,
                silence_s=self._silence_s,
                timeout_s=CONNECT_TIMEOUT_S,
                on_lost=lambda reason: self._events.put(HeadLost(reason=reason)),
            )
        except PeerError as error:
            self._events.put(HeadLost(reason=str(error)))
            return
        threading.Thread(target=self._listen, args=[self._channel], daemon=True).start()

    def _listen(self, channel: WorkerChannel[ToSupervisor, FromSupervisor]) -> None:
        message: ToSupervisor | None = None
        try:
            while not isinstance(message, Over):
                message = channel.receive()
                self._events.put(message)
        except PeerError as error:
            self._events.put(HeadLost(reason=str(error)))

    def _tell(self, message: FromSupervisor) -> None:
        if self._channel is None:
            raise RuntimeError("a rank speaks before it has told where the head is")
        try:
            self._channel.send(message)
        except PeerError as error:
            self._events.put(HeadLost(reason=str(error)))

    def _note_late_end(self) -> None:
        """Learn how the rank ended, where that came behind the end of the job."""
        while (event := self._events.get(0.0)) is not None:
            if isinstance(event, Ended):
                self._child_code = event.code
