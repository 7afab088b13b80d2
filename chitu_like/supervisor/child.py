"""A supervisor's rank: a process of its own, started, heard and ended from here."""

from __future__ import annotations

import logging
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence

from chitu_like.core.errors import PeerError
from chitu_like.supervisor.link import Link
from chitu_like.supervisor.messages import Begin, Ended, FromRank, ToRank

logger = logging.getLogger(__name__)

RANK_PROGRAM = (sys.executable, "-m", "chitu_like.supervisor.rank")
NOTICE_S = 2.0
"""Time a rank has to find out by itself that its peers are gone, and to say so."""
DUMP_S = 1.0
"""Time a rank has to write its stacks before it is killed."""
FAILED = 1


class RankChild:
    """The process of one rank. It shares this process's output, and does not outlive it.

    Args:
        rank: of the world.
        begin: its first message.
        hear: called from a thread with all that it says; the last is Ended, when it has.
        program: command line, to which the number of its end of the link is added.
    """

    def __init__(
        self,
        rank: int,
        begin: Begin,
        hear: Callable[[FromRank], None],
        program: Sequence[str] = RANK_PROGRAM,
    ) -> None:
        self._rank = rank
        self._hear = hear
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [*program, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # torchrun's signals and Ctrl-C are for supervisors
            )
        self._link: Link[ToRank, FromRank] = Link(ours, FromRank)
        self.send(begin)
        self._listener = threading.Thread(target=self._listen, name="rank-child", daemon=True)
        self._listener.start()

    def send(self, message: ToRank) -> None:
        """Tell it something; where it is gone, `hear` is told of that."""
        try:
            self._link.send(message)
        except PeerError as error:
            logger.warning("rank %d was not told %s: %s", self._rank, type(message).__name__, error)

    def end_stuck(self) -> None:
        """Kill it, after it had time to end by itself, then to write its stacks; returns at once."""

        def end() -> None:
            if self._ends_within(NOTICE_S):
                return
            self._process.send_signal(signal.SIGUSR1)
            if not self._ends_within(DUMP_S):
                self._process.kill()

        threading.Thread(target=end, name="rank-end", daemon=True).start()

    def end(self) -> bool:
        """Kill it if it has not ended: then True.

        `hear` was called for the last time when this returns.
        """
        was_running = self._process.poll() is None
        self._process.kill()
        self._listener.join()
        self._link.close()
        return was_running

    def _ends_within(self, timeout_s: float) -> bool:
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _listen(self) -> None:
        last_words = None
        while (said := self._link.receive()) is not None:
            if isinstance(said, Ended):
                last_words = said
            else:
                self._hear(said)
        self._hear(self._ended(self._process.wait(), last_words))

    def _ended(self, code: int, last_words: Ended | None) -> Ended:
        """How it ended, in its own words where it had time for them."""
        if last_words is not None and last_words.code == code:
            return last_words
        if code < 0:
            return Ended(self._rank, FAILED, f"it was ended by {signal.Signals(-code).name}")
        return Ended(self._rank, code, f"it ended with code {code}")
