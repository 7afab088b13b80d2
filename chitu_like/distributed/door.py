"""The leader's door: whoever connects is a stranger until it says the job's secret and a free rank."""

from __future__ import annotations

import hmac
import logging
import socket
import time

import msgspec

from chitu_like.core.errors import PeerError
from chitu_like.distributed.wire import MAX_FRAME_BYTES, Wire, format_address

logger = logging.getLogger(__name__)

HELLO_TIMEOUT_S = 5.0
"""A worker says hello as soon as it is connected; whoever is silent for so long is none."""
MAX_HELLO_BYTES = 1024
MAX_STRANGERS = 256
"""Connections that have not said hello; the oldest goes when there are more."""


class Hello(msgspec.Struct, frozen=True):
    """A worker's first words: the job's secret, and its rank in the instance."""

    secret: str
    rank: int


class Door:
    """Takes connections and finds the workers among them. Nothing here waits.

    Args:
        host: address of the one interface to listen on.
        secret: what a hello must carry.
        num_workers: ranks 1 to num_workers are let in, each once.

    Attributes:
        listener: non-blocking; readable where somebody knocks.
        address: 'host:port' to connect to.
    """

    def __init__(self, host: str, secret: str, num_workers: int) -> None:
        """Listen. Raises: PeerError where the address is not this machine's."""
        try:
            family = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0][0]
            self.listener = socket.create_server((host, 0), family=family)
        except OSError as error:
            raise PeerError(f"cannot listen on {host} for other ranks: {error}") from None
        self.listener.setblocking(False)
        self.address = format_address(self.listener.getsockname())
        self._secret = secret.encode()
        self._free_ranks = set(range(1, num_workers + 1))
        self._decoder = msgspec.msgpack.Decoder(Hello)
        self._strangers: dict[Wire, float] = {}  # and when each came; oldest first

    @property
    def missing(self) -> list[int]:
        """Ranks that have not come, in order."""
        return sorted(self._free_ranks)

    def open(self) -> Wire | None:
        """Take one connection; None where it is gone again."""
        try:
            connection, peer = self.listener.accept()
        except OSError:
            return None
        try:
            connection.setblocking(True)
            wire = Wire(connection, format_address(peer), MAX_HELLO_BYTES)
        except OSError:
            connection.close()
            return None
        self._strangers[wire] = time.monotonic()
        return wire

    def hear(self, wire: Wire) -> int | None:
        """Read a stranger. Returns: its rank where it is a worker, None until its hello is whole.

        Raises: PeerError where it is none; the caller drops it.
        """
        try:
            is_open = wire.read()
            payload = wire.parser.next_payload()
        except OSError as error:
            raise PeerError(f"connection broke: {error.strerror}") from None
        if payload is None:
            if not is_open:
                raise PeerError("closed without a hello")
            return None
        try:
            hello = self._decoder.decode(payload)
        except (msgspec.DecodeError, ValueError):
            raise PeerError("sent no hello") from None
        if not hmac.compare_digest(hello.secret.encode(), self._secret):
            raise PeerError("does not know the job's secret")
        if hello.rank not in self._free_ranks:
            raise PeerError(f"claims rank {hello.rank}, which is not free")
        self._free_ranks.remove(hello.rank)
        del self._strangers[wire]
        wire.parser.max_bytes = MAX_FRAME_BYTES
        return hello.rank

    def unwelcome(self) -> list[Wire]:
        """Strangers to drop: too long silent, the oldest of too many, or all once nobody is missing."""
        too_old = time.monotonic() - HELLO_TIMEOUT_S
        excess = len(self._strangers) - (MAX_STRANGERS if self._free_ranks else 0)
        return [
            wire
            for index, (wire, came_at) in enumerate(self._strangers.items())
            if came_at < too_old or index < excess
        ]

    def drop(self, wire: Wire, reason: str) -> None:
        """Show a stranger out."""
        logger.warning("control channel: dropped %s: %s", wire.peer, reason)
        del self._strangers[wire]
        wire.close()

    def close(self) -> None:
        """Listen no more, and drop the strangers."""
        self.listener.close()
        for wire in list(self._strangers):
            self.drop(wire, "the door closes")
