"""The engine's end of the socket to the front end, and the loop that serves it.

The socket is a ZeroMQ PAIR: one front end, in order, no loss. Every message is msgpack of a struct of
`messages.py`; the first must be a Hello with the job's secret, everything before it is dropped.
"""

from __future__ import annotations

import hmac
import logging
from types import TracebackType

import msgspec
import zmq

from chitu_like.core.errors import PeerError
from chitu_like.engine.engine import Engine
from chitu_like.engine.messages import (
    AbortRequests,
    AddRequest,
    EngineStats,
    Failed,
    Hello,
    Ready,
    Shutdown,
    StepMessage,
    ToEngine,
    ToFrontEnd,
)

logger = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 64 * 2**20
"""No honest message comes near: a prompt of a million tokens takes five megabytes."""


class EngineEndpoint:
    """Binds the engine's address and speaks to the front end.

    Args:
        address: a ZeroMQ address to bind, e.g. ipc:///run/user/0/x/engine-0.
        secret: what Hello must carry.
    """

    def __init__(self, address: str, secret: str) -> None:
        """Bind."""
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.PAIR)
        self._socket.setsockopt(zmq.LINGER, 1000)
        self._socket.setsockopt(zmq.SNDHWM, 0)  # the front end reads all; clients are bounded there
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        self._socket.bind(address)
        self._secret = secret
        self._is_trusted = False
        self._decoder = msgspec.msgpack.Decoder(ToEngine)
        self._encoder = msgspec.msgpack.Encoder()

    def __enter__(self) -> EngineEndpoint:
        """Use as a context: leaving it closes the socket."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close after what was sent has left, one second at most."""
        self._socket.close()
        self._context.term()

    def send(self, message: ToFrontEnd) -> None:
        """Queue a message for the front end; never waits."""
        self._socket.send(self._encoder.encode(message))

    def receive(self, timeout_s: float | None) -> ToEngine | None:
        """The next message, waiting up to `timeout_s` (None: for ever); None where none came.

        Messages before a valid Hello, and malformed ones, are dropped with a line in the log.
        """
        timeout_ms = None if timeout_s is None else int(timeout_s * 1000)
        while self._socket.poll(timeout_ms):
            try:
                message: ToEngine = self._decoder.decode(self._socket.recv())
            except (msgspec.DecodeError, ValueError) as error:
                logger.error("dropped a malformed message: %s", error)
                continue
            if isinstance(message, Hello):
                self._is_trusted = hmac.compare_digest(message.secret, self._secret)
                if not self._is_trusted:
                    logger.error("dropped a peer with a wrong secret")
                continue
            if self._is_trusted:
                return message
            logger.error("dropped a message from a peer that did not say hello")
        return None


def serve(engine: Engine, endpoint: EngineEndpoint) -> None:
    """Run the engine until the front end says Shutdown.

    Between steps all messages that came are taken in; with nothing to do it sleeps in the socket.

    Raises:
        Exception: whatever broke the executor, after every open request was answered.
    """
    endpoint.send(Ready(engine.info))
    try:
        while _take_messages(engine, endpoint):
            if engine.has_requests:
                deltas = engine.step()
                endpoint.send(StepMessage(deltas, engine.stats()))
    except Exception as error:
        reason = f"the engine failed: {type(error).__name__}"
        endpoint.send(StepMessage(engine.fail_all(reason), EngineStats()))
        endpoint.send(Failed(str(error) if isinstance(error, PeerError) else reason))
        raise


def _take_messages(engine: Engine, endpoint: EngineEndpoint) -> bool:
    """Hand every waiting message to the engine; False where one says to stop."""
    was_idle = not engine.has_requests
    message = endpoint.receive(None if was_idle else 0)
    aborted = False
    while message is not None:
        if isinstance(message, Shutdown):
            return False
        if isinstance(message, AddRequest):
            engine.add(message)
        elif isinstance(message, AbortRequests):
            aborted = True
            for request_id in message.request_ids:
                engine.abort(request_id)
        message = endpoint.receive(0)
    if aborted and not engine.has_requests:
        endpoint.send(StepMessage([], engine.stats()))  # gauges fall back to zero at once
    return True
