"""The process that started this one: its orders, its death, and its end when it stalls."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from typing import TypeAlias

import msgspec

from chitu_like.core.errors import PeerError

logger = logging.getLogger(__name__)

MAX_LINE_BYTES = 16 << 20
"""Longest line from the leader: a configuration with a chat template in it."""
DUMP_S = 1.0
"""Time a stalled leader has to write its stacks, and streams to write their last frame."""


class Drain(msgspec.Struct, frozen=True, tag_field="command", tag="drain"):
    """Finish what is open, let the engines go, and end."""


class Connect(msgspec.Struct, frozen=True, tag_field="command", tag="connect"):
    """An engine listens, or soon will.

    Attributes:
        instance: its number.
        address: a ZeroMQ endpoint.
    """

    instance: int
    address: str


Order: TypeAlias = Drain | Connect
"""What the leader may say after the configuration: one JSON line each."""


class Leader:
    """The leader's end of stdin and stdout, and its process. Belongs to one event loop.

    Make one with `Leader.listen`.
    """

    def __init__(self, lines: asyncio.StreamReader) -> None:
        self._lines = lines
        self._pid: int | None = None
        self._pidfd: int | None = None
        self._died = asyncio.Event()

    @classmethod
    async def listen(cls) -> Leader:
        """Open stdin, which must be a pipe or a socket."""
        lines = asyncio.StreamReader(limit=MAX_LINE_BYTES)
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin.buffer)
        return cls(lines)

    def watch(self, pid: int | None) -> None:
        """Watch the process itself, where the system can: a child of it may hold the pipe open."""
        self._pid = pid
        if pid is None or not hasattr(os, "pidfd_open"):
            return
        try:
            self._pidfd = os.pidfd_open(pid)
        except OSError:  # it is gone already, or the system cannot: the pipe will tell
            return
        asyncio.get_running_loop().add_reader(self._pidfd, self._note_death)

    def _note_death(self) -> None:
        if self._pidfd is not None:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
        self._died.set()

    async def read_line(self) -> bytes:
        """The next line. Raises: PeerError at the end of stdin."""
        try:
            return await self._lines.readuntil()
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            raise PeerError("the leader has closed the connection to its front end") from None

    async def read_order(self) -> Order:
        """The next order. Raises: PeerError when the leader is gone, or says what is no order."""
        reading = asyncio.ensure_future(self.read_line())
        dying = asyncio.ensure_future(self._died.wait())
        try:
            await asyncio.wait({reading, dying}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                raise PeerError("the leader has died")
            order: Order = msgspec.json.decode(reading.result(), type=Order)
            return order
        except msgspec.DecodeError as error:
            raise PeerError(f"the leader gave an order that is none: {error}") from None
        finally:
            reading.cancel()
            dying.cancel()

    def tell(self, event: str, **details: str | int) -> None:
        """Write one JSON line to stdout; nobody may be reading."""
        line = msgspec.json.encode({"event": event, **details}) + b"\n"
        try:
            os.write(sys.stdout.fileno(), line)
        except OSError as error:
            logger.warning("the leader does not listen: %s", error.strerror)

    async def end_stalled(self) -> None:
        """Let it write its stacks, then kill it."""
        self._signal(signal.SIGUSR1)
        await asyncio.sleep(DUMP_S)
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._pid is None or self._died.is_set():
            return
        try:
            if self._pidfd is not None:
                signal.pidfd_send_signal(self._pidfd, number)  # never a stranger with its old pid
            elif os.getppid() == self._pid:
                os.kill(self._pid, number)
        except ProcessLookupError:
            logger.info("the leader was gone before %s", number.name)
