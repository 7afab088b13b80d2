"""The engine's end of the socket to the front end, and the loop that serves it.

A ZeroMQ ROUTER here, a DEALER there: in order, no loss, and whoever else connects takes nobody's place.
Every message is msgpack of a struct of `messages.py`. The peer that says Hello with the job's secret is
the front end; what others say is dropped.
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
ASK_S = 0.001
"""How often the engine looks for newcomers while a pipeline has room for them."""


class EngineEndpoint:
    """Binds the engine's address and speaks to the front end.

    Args:
        address: a ZeroMQ address to bind, e.g. ipc:///run/user/0/x/engine-0, or
            tcp://10.0.0.2:* for any free port.
        secret: what Hello must carry.

    Attributes:
        address: what it is bound to.
    """

    def __init__(self, address: str, secret: str) -> None:
        """Bind."""
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 1000)
        self._socket.setsockopt(zmq.SNDHWM, 0)  # the front end reads all; clients are bounded there
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        self._socket.bind(address)
        self.address: str = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._secret = secret.encode()
        self._front_end: bytes | None = None
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
        """Queue a message for the front end; never waits. There must have been a Hello."""
        if self._front_end is None:
            raise PeerError("no front end has said hello")
        self._socket.send_multipart([self._front_end, self._encoder.encode(message)])

    def receive(self, timeout_s: float | None) -> ToEngine | None:
        """The next message, waiting up to `timeout_s` (None: for ever); None where none came.

        What strangers say, and malformed messages, are dropped with a line in the log.
        """
        timeout_ms = None if timeout_s is None else int(timeout_s * 1000)
        while self._socket.poll(timeout_ms):
            peer, *frames = self._socket.recv_multipart()
            try:
                message: ToEngine = self._decoder.decode(b"".join(frames))
            except (msgspec.DecodeError, ValueError) as error:
                logger.error("dropped a malformed message: %s", error)
                continue
            if isinstance(message, Hello) and self._is_right(message.secret):
                self._front_end = peer
                return message
            if peer == self._front_end:
                return message
            logger.error("dropped a message from a peer without the secret")
        return None

    def _is_right(self, secret: str) -> bool:
        """Compare bytes: of texts, hmac takes ASCII alone."""
        return hmac.compare_digest(secret.encode(), self._secret)


def serve(engine: Engine, endpoint: EngineEndpoint) -> None:
    """Run the engine until the front end says Shutdown.

    Between steps all messages that came are taken in; with nothing to do it sleeps in the socket.
    A Hello is answered with Ready.

    Raises:
        Exception: whatever broke the executor, after the front end was told: Failed ends all
            requests.
    """
    try:
        while _take_messages(engine, endpoint):
            if engine.has_requests and engine.is_due(ASK_S):
                deltas = engine.take_in()
                endpoint.send(StepMessage(deltas, engine.stats()))
    except Exception as error:
        reason = f"the engine failed: {type(error).__name__}"
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
        if isinstance(message, Hello):
            endpoint.send(Ready(engine.info))
        elif isinstance(message, AddRequest):
            engine.add(message)
        elif isinstance(message, AbortRequests):
            aborted = True
            for request_id in message.request_ids:
                engine.abort(request_id)
        message = endpoint.receive(0)
    if aborted and not engine.has_requests:
        endpoint.send(StepMessage([], engine.stats()))  # gauges fall back to zero at once
    return True
