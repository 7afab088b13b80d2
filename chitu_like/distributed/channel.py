"""The control channel of an instance: its leader speaks to all workers in one order, they answer.

Plain TCP on one interface; msgpack of msgspec structs, never pickle. Both ends send heartbeats from a
thread, so that an end which died or stands still is noticed even while the other computes, and a rank
with nothing to do sleeps in the socket. Ranks are those in the instance: the leader is 0.
"""

from __future__ import annotations

import contextlib
import queue
import select
import socket
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from chitu_like.core.errors import PeerError
from chitu_like.distributed.door import Door, Hello
from chitu_like.distributed.watch import Loss, Pace, WorkerWatch
from chitu_like.distributed.wire import Wire, frame_of, parse_address

ToWorker = TypeVar("ToWorker")
FromWorker = TypeVar("FromWorker")

TOLD_TIMEOUT_S = 1.0
"""From the leader's end until `receive` has raised, where a worker waits in it."""


class LeaderChannel(Generic[ToWorker, FromWorker]):
    """The leader's end. It listens, beats and reads from the start; one thread uses the methods.

    Args:
        host: address of the one interface that reaches the workers.
        secret: of the job; a connection without it is dropped.
        num_workers: of the instance, at least 1.
        from_worker: the type of what workers say, for msgspec.
        silence_s: a worker that says nothing, or takes nothing, for so long is lost. It must exceed
            whatever may keep a live process from running a thread.
        on_lost: called once with the first lost rank and the reason, from the channel's own thread,
            after what the rank had said was queued. It may end the process; it must not call the
            channel.

    Attributes:
        address: 'host:port' for the workers.
    """

    def __init__(
        self,
        host: str,
        secret: str,
        num_workers: int,
        *,
        from_worker: object,
        silence_s: float,
        on_lost: Callable[[int, str], None],
    ) -> None:
        """Listen. Raises: PeerError where `host` is no address of this machine."""
        self._door = Door(host, secret, num_workers)
        self.address = self._door.address
        self._encoder = msgspec.msgpack.Encoder()
        decoder: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(from_worker)
        self._watch = WorkerWatch(self._door, decoder, silence_s=silence_s, on_lost=on_lost)

    def accept(self, timeout_s: float) -> None:
        """Wait until every worker is in; the channel listens no more then.

        Raises: PeerError where one is lost, or naming those that did not come in time.
        """
        if not self._watch.is_settled.wait(timeout_s):
            missing = ", ".join(map(str, self._door.missing))
            raise PeerError(
                f"these ranks of the instance did not reach the control channel at {self.address} "
                f"within {timeout_s:g} s: {missing}"
            )
        if self._watch.loss is not None:
            raise self._watch.loss

    def send(self, message: ToWorker) -> None:
        """Send to every worker, in the order of the calls. Those not in yet (`accept`) miss it.

        Raises:
            PeerError: a worker is lost.
            ValueError: the message exceeds MAX_FRAME_BYTES.
        """
        if self._watch.loss is not None:
            raise self._watch.loss
        frame = frame_of(self._encoder.encode(message))
        for rank in list(self._watch.wires):  # a goodbye may be said while some still come in
            self._send_to(rank, frame)

    def receive(self, timeout_s: float | None = None) -> tuple[int, FromWorker]:
        """The next (rank in the instance, message) of any worker; one worker's keep their order.

        Args:
            timeout_s: None waits for ever.

        Raises:
            PeerError: a worker is lost, and all that came before is received.
            TimeoutError: nothing came.
        """
        try:
            received = self._watch.messages.get(timeout=timeout_s)
        except queue.Empty:
            raise TimeoutError(f"no worker said anything for {timeout_s} s") from None
        if isinstance(received, Loss):
            self._watch.messages.put(received)  # lost for good
            raise received
        return received

    def stop(self, message: ToWorker, timeout_s: float) -> None:
        """Send the last message, wait until every worker has closed its end in answer, and close.

        So neither end takes the other's end for a loss. A worker that needs longer finds the channel
        closed. Raises: PeerError where a worker was lost before; closed all the same.
        """
        self._watch.let_go()
        try:
            self.send(message)
            self._watch.wait_until_empty(timeout_s)
        finally:
            self.close()

    def close(self) -> None:
        """Close at once; workers that were not told to stop take it for the leader's death.

        Closing twice is harmless.
        """
        self._watch.close()

    def _send_to(self, rank: int, frame: bytes) -> None:
        try:
            self._watch.wires[rank].send(frame)
        except OSError:
            raise self._watch.loss or Loss(rank, "connection closed") from None


class WorkerChannel(Generic[ToWorker, FromWorker]):
    """A worker's end; make one with `connect`. One thread uses the methods."""

    def __init__(
        self,
        wire: Wire,
        *,
        to_worker: object,
        silence_s: float,
        on_lost: Callable[[str], None],
    ) -> None:
        """Start beating on a wire where hello was said. Arguments as for `connect`."""
        self._wire = wire
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(to_worker)
        self._pace = Pace(silence_s)
        self._on_lost = on_lost
        self._is_receiving = False
        self._is_closing = False
        self._is_settled = threading.Event()  # whoever uses the channel knows of its end
        self._loss = "connection closed"
        self._thread = threading.Thread(target=self._watch, name="leader-watch", daemon=True)
        self._thread.start()

    @classmethod
    def connect(
        cls,
        address: str,
        secret: str,
        *,
        rank: int,
        to_worker: object,
        silence_s: float,
        timeout_s: float,
        on_lost: Callable[[str], None],
    ) -> WorkerChannel[ToWorker, FromWorker]:
        """Connect to the leader.

        Args:
            address: the LeaderChannel's.
            secret: of the job.
            rank: in the instance, from 1.
            to_worker: the type of what the leader says, for msgspec.
            silence_s: a leader that says nothing for so long is gone.
            timeout_s: for connecting.
            on_lost: called once with the reason, from the channel's own thread, when the leader is
                gone and nobody waits in `receive` (which raises it then). It should end the process:
                the thread that uses the channel may hang in a collective for ever.

        Raises: PeerError where nobody listens there.
        """
        try:
            connection = socket.create_connection(parse_address(address), timeout=timeout_s)
            connection.settimeout(None)
            wire = Wire(connection, address)
            wire.send(frame_of(msgspec.msgpack.encode(Hello(secret, rank))))
        except OSError as error:
            raise PeerError(f"cannot reach the instance's leader at {address}: {error}") from None
        return cls(wire, to_worker=to_worker, silence_s=silence_s, on_lost=on_lost)

    def receive(self) -> ToWorker:
        """The leader's next message; waits for ever in the socket itself, so no thread hands it on.

        Raises: PeerError where the leader is gone or silent, or says what is no message of ours.
        """
        self._is_receiving = True  # and stays so where this raises: whoever called has been told
        try:
            while not (payload := self._wire.parser.next_payload()):
                if payload is None and not self._wire.read():
                    raise self._lost()
            message = self._decoder.decode(payload)
        except OSError:
            raise self._lost() from None
        except (msgspec.DecodeError, ValueError) as error:
            raise PeerError(f"the instance's leader sent no message of ours: {error}") from None
        self._is_receiving = False
        return message

    def send(self, message: FromWorker) -> None:
        """Answer the leader. Raises: PeerError where it is gone."""
        try:
            self._wire.send(frame_of(self._encoder.encode(message)))
        except OSError:
            raise PeerError(f"the instance's leader is lost: {self._loss}") from None

    def close(self) -> None:
        """Close this end, as is right at once when the leader said to stop; it is waiting for that."""
        self._is_closing = True
        self._is_settled.set()
        self._wire.hang_up()
        self._thread.join()
        self._wire.close()

    def _watch(self) -> None:
        """Beat until the leader is gone; then tell whoever waits in `receive`, else `on_lost`."""
        loss = self._wait_for_loss()
        if self._is_closing:
            return
        self._loss = loss
        was_receiving = self._is_receiving
        self._wire.hang_up()
        # A last message may have come with the end, and sent whoever received it off to compute.
        if not was_receiving or not self._is_settled.wait(TOLD_TIMEOUT_S):
            self._on_lost(loss)

    def _lost(self) -> PeerError:
        """What `receive` raises."""
        self._is_settled.set()
        return PeerError(f"the instance's leader is lost: {self._loss}")

    def _wait_for_loss(self) -> str:
        ends = select.poll()
        ends.register(self._wire, select.POLLRDHUP)  # and POLLHUP, POLLERR, which are always on
        while not ends.poll(self._pace.interval_s * 1000):
            self._wire.look()
            if self._wire.num_silent_looks >= self._pace.num_looks:
                return f"silent for {self._pace.silence_s} s"
            with contextlib.suppress(OSError):  # the poll says it next
                self._wire.beat()
        return "connection closed"
