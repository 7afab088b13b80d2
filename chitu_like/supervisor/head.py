"""World rank 0's supervisor: it has the front end, and says when the job is over."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from chitu_like.cluster.placement import Placement
from chitu_like.core.ending import DONE, FAILED, INTERRUPTED, USER_MISTAKE
from chitu_like.core.errors import PeerError
from chitu_like.distributed.channel import LeaderChannel
from chitu_like.supervisor.child import RANK_PROGRAM, RankChild
from chitu_like.supervisor.events import (
    EventQueue,
    FrontEndEnded,
    InstanceLost,
    Signalled,
    SupervisorLost,
    take_signals,
)
from chitu_like.supervisor.messages import (
    Begin,
    Ended,
    EndRanks,
    Found,
    FromRank,
    FromSupervisor,
    Listening,
    Open,
    Over,
    ToSupervisor,
    Welcome,
)
from chitu_like.torchrun import MEETING_TIMEOUT_S

logger = logging.getLogger(__name__)

STOP_TIMEOUT_S = 10.0
"""What supervisors need to end their ranks and to close."""

_Event: TypeAlias = (
    FromRank | FromSupervisor | Signalled | SupervisorLost | InstanceLost | FrontEndEnded
)
_Channel: TypeAlias = LeaderChannel[ToSupervisor, FromSupervisor]


class FrontEnd(Protocol):
    """What the head needs of `FrontEndProcess`."""

    secret: str

    @property
    def folder(self) -> str:
        """For the sockets of engines on this machine."""

    def connect(self, instance: int, address: str) -> None:
        """Say where an instance's engine is."""

    def drain(self) -> None:
        """Finish what is open, then stop the engines and end."""

    def when_ended(
        self,
        call: Callable[[int, str], None],
        *,
        when_ready: Callable[[], None] | None = None,
        when_lost: Callable[[int], None] | None = None,
    ) -> None:
        """Tell when clients are served, of every instance that it gives up, and of its end."""


class HeadSupervisor:
    """The whole job, as world rank 0's supervisor sees it.

    While instances load, the end of any rank ends the job with the rank's own code. Once all listen,
    instances are lost alone: what is left of their ranks is ended, and the others serve on.

    Args:
        placement: of all ranks.
        front_end: running; ended by whoever made it.
        started: name of the run's log folder.
        silence_s: a supervisor that says nothing for so long is gone.
        when_ready: called once clients are served, from a thread.
        program: see RankChild.
    """

    def __init__(
        self,
        placement: Placement,
        front_end: FrontEnd,
        started: str,
        *,
        silence_s: float,
        when_ready: Callable[[], None],
        program: Sequence[str] = RANK_PROGRAM,
    ) -> None:
        self._placement = placement
        self._front_end = front_end
        self._started = started
        self._silence_s = silence_s
        self._when_ready = when_ready
        self._program = program
        self._events: EventQueue[_Event] = EventQueue()
        self._channel: _Channel | None = None
        self._listening: set[int] = set()
        self._lost: set[int] = set()
        self._ended: set[int] = set()
        self._is_draining = False
        self._is_broken = False
        self._stop_by_s: float | None = None
        self._code: int | None = None

    def run(self, begin: Begin) -> int:
        """Run until the job is over; the exit code."""
        take_signals(self._events.put)
        self._front_end.when_ended(
            lambda code, reason: self._events.put(FrontEndEnded(code=code, reason=reason)),
            when_ready=self._when_ready,
            when_lost=lambda instance: self._events.put(InstanceLost(instance=instance)),
        )
        self._child = RankChild(0, begin, self._events.put, self._program)
        try:
            while self._code is None:
                event = self._events.get(self._patience_s())
                if event is None:  # the front end has drained, but a rank does not stop
                    self._code = FAILED
                else:
                    self._take(event)
        finally:
            self._part(FAILED if self._code is None else self._code)
            self._child.end()
        return self._code or (FAILED if 0 in self._lost else DONE)

    def _patience_s(self) -> float | None:
        """How long the next event may take."""
        return None if self._stop_by_s is None else max(0.0, self._stop_by_s - time.monotonic())

    def _take(self, event: _Event) -> None:
        if isinstance(event, Found):
            self._open(event)
        elif isinstance(event, Listening):
            self._listening.add(event.instance)
            self._front_end.connect(event.instance, event.address)
        elif isinstance(event, Ended):
            self._rank_ended(event)
        elif isinstance(event, InstanceLost):
            self._end_instance(event.instance)
        elif isinstance(event, FrontEndEnded):
            self._front_end_ended(event)
        elif isinstance(event, SupervisorLost):
            # torchrun ends everybody when a supervisor dies; where it only stands still, we must.
            logger.error("the job ends: %s", event.reason)
            self._is_broken = True
            if self._is_ready:
                self._front_end.drain()
            else:
                self._code = FAILED
        elif isinstance(event, Signalled):
            if self._is_draining and event.number == signal.SIGINT:
                self._code = INTERRUPTED
            self._is_draining = True
            self._front_end.drain()

    @property
    def _is_ready(self) -> bool:
        return len(self._listening) == len(self._placement.instances)

    def _rank_ended(self, event: Ended) -> None:
        self._ended.add(event.rank)
        if not self._is_ready:
            self._say_why(event)
            self._code = event.code or FAILED
            return
        if event.code != DONE:
            instance = self._placement.seat(event.rank).instance
            logger.error("rank %d of instance %d is lost: %s", event.rank, instance, event.reason)
            self._lost.add(event.rank)
            self._end_instance(instance)
        if self._stop_by_s is not None:
            self._check_all_stopped()

    def _say_why(self, event: Ended) -> None:
        if event.code == USER_MISTAKE:
            print(f"chitu_like: {event.reason}", file=sys.stderr, flush=True)
        else:
            logger.error("rank %d ended while the model was loading: %s", event.rank, event.reason)

    def _front_end_ended(self, event: FrontEndEnded) -> None:
        if event.code == DONE and self._is_broken:  # the others can tell us nothing any more
            self._code = FAILED
        elif event.code == DONE and self._is_ready:
            logger.info("drained")
            self._stop_by_s = time.monotonic() + STOP_TIMEOUT_S
            self._check_all_stopped()
        elif event.code == DONE:  # engines that are not there cannot be told to stop
            self._code = DONE
        elif event.code == USER_MISTAKE:
            print(f"chitu_like: {event.reason}", file=sys.stderr, flush=True)
            self._code = USER_MISTAKE
        else:
            logger.error("%s: stopping", event.reason)
            self._code = FAILED

    def _check_all_stopped(self) -> None:
        if len(self._ended) == self._placement.num_ranks:
            self._code = DONE

    def _end_instance(self, instance: int) -> None:
        """Leave no rank of it behind, in a collective whose peers are gone."""
        left = set(self._placement.instances[instance].ranks) - self._ended
        if 0 in left:
            self._child.end_stuck()
        if others := sorted(left - {0}):
            self._tell_all(EndRanks(others))

    def _open(self, found: Found) -> None:
        """Listen for the other supervisors."""
        self._channel = LeaderChannel(
            found.host,
            found.secret,
            self._placement.num_ranks - 1,
            from_worker=FromSupervisor,
            silence_s=self._silence_s,
            on_lost=lambda rank, reason: self._lose(f"the supervisor of rank {rank}: {reason}"),
        )
        self._child.send(Open(self._channel.address))
        threading.Thread(target=self._listen, args=[self._channel], daemon=True).start()

    def _listen(self, channel: _Channel) -> None:
        """Let the others in, welcome them, and hear them to the end."""
        welcome = Welcome(self._started, self._front_end.secret, self._front_end.folder)
        try:
            channel.accept(MEETING_TIMEOUT_S)
            channel.send(welcome)
            self._child.send(welcome)
            while True:
                _, message = channel.receive()
                self._events.put(message)
        except PeerError as error:
            self._lose(str(error))

    def _lose(self, reason: str) -> None:
        self._events.put(SupervisorLost(reason=reason))

    def _tell_all(self, message: ToSupervisor) -> None:
        if self._channel is None:
            return
        try:
            self._channel.send(message)
        except PeerError as error:
            self._lose(str(error))

    def _part(self, code: int) -> None:
        """Tell the others that the job is over, and give them time to end their ranks."""
        if self._channel is None:
            return
        try:
            self._channel.stop(Over(code), STOP_TIMEOUT_S)
        except PeerError as error:
            logger.warning("not every supervisor was told of the end: %s", error)
