"""The leader's watch: one thread lets the workers in, reads them, beats, and notices who is gone."""

from __future__ import annotations

import contextlib
import math
import queue
import selectors
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar

import msgspec

from chitu_like.core.errors import PeerError
from chitu_like.distributed.door import Door
from chitu_like.distributed.wire import Wire

FromWorker = TypeVar("FromWorker")

BEAT_S = 1.0


class Pace:
    """How often both ends beat and look, and how many fruitless looks mean death.

    Args:
        silence_s: seconds of silence that mean death; a few heartbeats may be late.

    Attributes:
        interval_s: between two beats, and between two looks.
        num_looks: that make up the silence.
    """

    def __init__(self, silence_s: float) -> None:
        self.silence_s = silence_s
        self.interval_s = min(BEAT_S, silence_s / 4)
        self.num_looks = math.ceil(silence_s / self.interval_s)


class Loss(PeerError):
    """A worker is gone.

    Args:
        rank: its rank in the instance.
        reason: what was seen of it.
    """

    def __init__(self, rank: int, reason: str) -> None:
        super().__init__(f"rank {rank} of the instance is lost: {reason}")
        self.rank = rank
        self.reason = reason


class WorkerWatch(Generic[FromWorker]):
    """Reads all workers until one is lost or `close` is called.

    Args:
        door: where workers come in; closed once all are in.
        decoder: of what workers say.
        silence_s: a worker that says nothing, or takes nothing, for so long is lost.
        on_lost: called from the watch with the first loss, which also ends the watch.

    Attributes:
        wires: of the workers, by rank; complete once `is_settled` without a loss.
        messages: (rank, message) in the order they came; after them the loss.
        loss: the first, or None.
        is_settled: set once every worker is in, or one is lost.
    """

    def __init__(
        self,
        door: Door,
        decoder: msgspec.msgpack.Decoder[FromWorker],
        *,
        silence_s: float,
        on_lost: Callable[[int, str], None],
    ) -> None:
        """Start the thread."""
        self._door = door
        self._decoder = decoder
        self._pace = Pace(silence_s)
        self._on_lost = on_lost
        self.wires: dict[int, Wire] = {}
        self.messages: queue.SimpleQueue[tuple[int, FromWorker] | Loss] = queue.SimpleQueue()
        self.loss: Loss | None = None
        self.is_settled = threading.Event()
        self._is_letting_go = False
        self._gone: set[int] = set()
        self._is_empty = threading.Event()
        self._is_closing = False
        self._wake, self._woken = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._woken, selectors.EVENT_READ, lambda: None)
        self._selector.register(door.listener, selectors.EVENT_READ, self._open_door)
        self._thread = threading.Thread(target=self._run, name="worker-watch", daemon=True)
        self._thread.start()

    def let_go(self) -> None:
        """From now on a worker that closes its end has left, and is not lost."""
        self._is_letting_go = True

    def wait_until_empty(self, timeout_s: float) -> bool:
        """After `let_go`: wait for every worker to leave. Returns: whether all have."""
        return self._is_empty.wait(timeout_s)

    def close(self) -> None:
        """End the thread, then every connection. Do not call it from `on_lost`."""
        if self._is_closing:
            return
        self._is_closing = True
        self._wake.send(b"x")
        self._thread.join()
        self._door.close()
        for wire in self.wires.values():
            wire.close()
        self._wake.close()
        self._woken.close()
        self._selector.close()

    def _run(self) -> None:
        try:
            self._watch()
        except Loss as loss:
            self.loss = loss
            self.wires[loss.rank].hang_up()  # a send that waits there comes back
            self.messages.put(loss)
            self.is_settled.set()
            self._is_empty.set()  # nobody watches who leaves any more
            self._on_lost(loss.rank, loss.reason)

    def _watch(self) -> None:
        """Loop; ends when closing. Raises: Loss."""
        next_beat = time.monotonic() + self._pace.interval_s
        while not self._is_closing:
            for key, _ in self._selector.select(max(0.0, next_beat - time.monotonic())):
                key.data()
            if not self.is_settled.is_set():
                self._tend_door()
            if time.monotonic() >= next_beat:
                next_beat = time.monotonic() + self._pace.interval_s
                self._beat()

    def _open_door(self) -> None:
        wire = self._door.open()
        if wire is not None:
            self._selector.register(wire, selectors.EVENT_READ, partial(self._hear, wire))

    def _hear(self, wire: Wire) -> None:
        """Read a stranger."""
        try:
            rank = self._door.hear(wire)
        except PeerError as error:
            self._drop(wire, str(error))
            return
        if rank is not None:
            self.wires[rank] = wire
            self._selector.modify(wire, selectors.EVENT_READ, partial(self._read, rank))
            self._take_messages(rank)  # those that came with the hello

    def _tend_door(self) -> None:
        """Drop who is none of ours; close the door behind the last worker."""
        for wire in self._door.unwelcome():
            self._drop(wire, "said no hello in time")
        if not self._door.missing:
            self._selector.unregister(self._door.listener)
            self._door.close()
            self.is_settled.set()

    def _drop(self, wire: Wire, reason: str) -> None:
        self._selector.unregister(wire)
        self._door.drop(wire, reason)

    def _read(self, rank: int) -> None:
        try:
            is_open = self.wires[rank].read()
        except OSError:  # reset: the process was killed with messages unread
            is_open = False
        self._take_messages(rank)
        if not is_open:
            self._take_leave(rank)

    def _take_messages(self, rank: int) -> None:
        parser = self.wires[rank].parser
        try:
            while (payload := parser.next_payload()) is not None:
                if payload:
                    self.messages.put((rank, self._decoder.decode(payload)))
        except PeerError as error:
            raise Loss(rank, str(error)) from None
        except (msgspec.DecodeError, ValueError) as error:
            raise Loss(rank, f"sent no message of ours: {error}") from None

    def _take_leave(self, rank: int) -> None:
        """The worker closed its end: as it was told to, or not."""
        if not self._is_letting_go:
            raise Loss(rank, "connection closed")
        self._selector.unregister(self.wires[rank])
        self._gone.add(rank)
        if len(self._gone) == len(self.wires):
            self._is_empty.set()

    def _beat(self) -> None:
        """Say that this process lives, and see which worker did not for too long."""
        for rank, wire in self.wires.items():
            if rank in self._gone:
                continue
            wire.look()
            if wire.num_silent_looks >= self._pace.num_looks:
                raise Loss(rank, f"silent for {self._pace.silence_s} s")
            if wire.num_stuck_looks >= self._pace.num_looks:
                raise Loss(rank, f"took no message for {self._pace.silence_s} s")
            with contextlib.suppress(OSError):  # the end of its stream says it next
                wire.beat()
