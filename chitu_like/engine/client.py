"""The asking end of an engine: an asyncio ZeroMQ socket that speaks `engine/messages.py`.

One DEALER socket to one engine. The engine binds, so either side may start first. Where an engine
has gone, its requests went with it: whoever asked closes the client.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import msgspec
import zmq
import zmq.asyncio

from chitu_like.core.errors import CapacityError, PeerError
from chitu_like.engine.messages import (
    AbortRequests,
    AddRequest,
    Hello,
    Shutdown,
    ToEngine,
    ToFrontEnd,
)

MAX_PENDING_SENDS = 1 << 16
"""Messages an engine may be behind in reading. A loop that steps reads thousands a second; one that
is this far behind has stopped, and its front end must not grow with it."""
MAX_MESSAGE_BYTES = 1 << 28
"""Largest message taken from an engine: far above a step with prompt log-probabilities."""
PING_MS, PONG_TIMEOUT_MS = 2_000, 10_000
"""Over a network a machine that lost its power says no goodbye. Answered by ZeroMQ's own thread, so
an engine may take as long as it likes for a step."""


class EngineClient:
    """One engine, seen from the front end. Belongs to one event loop.

    Args:
        secret: what the engine expects in Hello.
        context: shared ZeroMQ context; None makes one of its own, ended by `close`.

    Attributes:
        address: where the engine is; None until `connect`.
    """

    def __init__(self, secret: str, *, context: zmq.asyncio.Context | None = None) -> None:
        self.address: str | None = None
        self._secret = secret
        self._connected = asyncio.Event()
        self._own_context = zmq.asyncio.Context() if context is None else None
        self._context = self._own_context if context is None else context
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[ToFrontEnd] = msgspec.msgpack.Decoder(ToFrontEnd)
        self._socket: zmq.asyncio.Socket | None = None
        self._monitor: zmq.asyncio.Socket | None = None

    def connect(self, address: str) -> None:
        """Say Hello; it waits in the socket until the engine binds. Only once.

        Args:
            address: ZeroMQ endpoint the engine binds, such as ipc:///run/x/engine-0 (in a folder of
                mode 0700) or tcp://10.0.0.2:29600.

        Raises: PeerError if the address cannot be used.
        """
        assert self._context is not None
        assert self.address is None, f"connected to {self.address} already"
        self.address = address
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, MAX_PENDING_SENDS)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        if address.startswith("tcp:"):
            socket.setsockopt(zmq.HEARTBEAT_IVL, PING_MS)
            socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, PONG_TIMEOUT_MS)
        self._monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        try:
            socket.connect(address)
        except zmq.ZMQError as error:
            raise PeerError(f"engine address {address!r} cannot be used: {error}") from None
        self._socket = socket
        self._send(Hello(secret=self._secret))
        self._connected.set()

    def add(self, request: AddRequest) -> None:
        """Hand a request over; never waits.

        Raises:
            CapacityError: the engine has stopped reading.
            PeerError: not connected.
        """
        self._send(request)

    def abort(self, request_ids: Sequence[str]) -> None:
        """Let the engine forget these; raises as `add` does."""
        if request_ids:
            self._send(AbortRequests(request_ids=list(request_ids)))

    def shutdown(self) -> None:
        """Ask the engine to stop; raises as `add` does."""
        self._send(Shutdown())

    async def messages(self) -> AsyncIterator[ToFrontEnd]:
        """Yield what the engine says, in order, once connected and until this client is closed.

        Raises: PeerError for bytes that are no message of ours.
        """
        await self._connected.wait()
        while self._socket is not None:
            frame = await self._socket.recv()
            try:
                yield self._decoder.decode(frame)
            except msgspec.DecodeError as error:
                raise PeerError(f"engine {self.address} broke the protocol: {error}") from None

    async def wait_gone(self) -> None:
        """Return when the engine's end of the connection has closed."""
        await self._connected.wait()
        if self._monitor is not None:
            await self._monitor.recv_multipart()  # only EVENT_DISCONNECTED is subscribed

    def close(self) -> None:
        """Drop the connection and what was not sent. May be called twice."""
        if self._socket is not None:
            self._socket.disable_monitor()
            self._socket.close(linger=0)
        if self._monitor is not None:
            self._monitor.close(linger=0)
        self._socket = self._monitor = None
        if self._own_context is not None:
            self._own_context.term()
            self._own_context = None

    def _send(self, message: ToEngine) -> None:
        if self._socket is None:
            raise PeerError(f"engine {self.address} is not connected")
        # With NOBLOCK the future is done at once. Sending behind the asyncio socket's back would
        # eat the edge of its file descriptor, and a waiting recv would sleep on.
        sent = asyncio.ensure_future(self._socket.send(self._encoder.encode(message), zmq.NOBLOCK))
        if sent.done() and isinstance(sent.exception(), zmq.Again):
            raise CapacityError(f"engine {self.address} has stopped reading its requests") from None
