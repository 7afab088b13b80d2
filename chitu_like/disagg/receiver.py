"""A decode instance's side of the crossing: what is offered to it, and what it pulls when.

Pulling instead of pushing makes the prefill instance's blocks the buffer of a burst: they are freed only
after the copy, so where decodes are too slow prefill admission stops by itself (DistServe, section 4.3).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from chitu_like.core.errors import CapacityError
from chitu_like.scheduler.prefilled import Prefilled
from chitu_like.scheduler.scheduler import Scheduler


class Mover(Protocol):
    """Copies KV blocks from another instance into this one's."""

    def start(self, request_id: str, source: str, blocks: list[tuple[int, int]]) -> None:
        """Begin to copy; Receiver.moved or .stopped follows once, and never from within this call.

        Batches submitted so far may still read the blocks that are written: let them end first.

        Args:
            request_id: for which.
            source: the instance to copy from.
            blocks: (block there, block here) pairs; may be empty.
        """
        ...

    def stop(self, request_id: str) -> None:
        """Give up a copy; Receiver.stopped (or .moved) follows when nothing is written any more."""
        ...


class Front(Protocol):
    """Who is told how pulls go: the coordinator."""

    def pulling(self, decode: str, request_id: str) -> None:
        """Blocks are set aside and a copy has begun."""
        ...

    def pulled(self, decode: str, request_id: str) -> None:
        """The copy is complete: the prefill instance may free its blocks."""
        ...

    def pull_failed(self, decode: str, request_id: str) -> None:
        """The copy ended halfway, and what was set aside for it is free."""
        ...

    def refused(self, decode: str, request_id: str, reason: str) -> None:
        """The request can never run here."""
        ...


@dataclass(frozen=True, kw_only=True)
class _Offer:
    prefilled: Prefilled
    source: str
    offered_s: float


class Receiver:
    """Offers in, pulls out. First come, first pulled: a large one is not passed by small ones.

    Args:
        name: of this instance.
        scheduler: of this instance.
        mover: copies into its blocks.
        front: is told what happens.
        clock: the scheduler's.
        max_landed_share: of the instance's blocks; while requests that wait here with their blocks
            hold more, nothing is pulled: the room is left to those that decode.
    """

    def __init__(
        self,
        name: str,
        scheduler: Scheduler,
        mover: Mover,
        front: Front,
        clock: Callable[[], float],
        *,
        max_landed_share: float = 0.05,
    ) -> None:
        """Start with no offer."""
        self.name = name
        self._scheduler = scheduler
        self._mover = mover
        self._front = front
        self._clock = clock
        self._max_landed_share = max_landed_share
        self._offers: OrderedDict[str, _Offer] = OrderedDict()
        self._pulls: set[str] = set()
        self._stopping: set[str] = set()

    @property
    def num_offers(self) -> int:
        """Requests that wait to be pulled."""
        return len(self._offers)

    @property
    def num_pulls(self) -> int:
        """Copies that have begun and not ended, those given up included."""
        return len(self._pulls) + len(self._stopping)

    def offer(self, prefilled: Prefilled, source: str) -> None:
        """Let a request wait to be pulled from `source`."""
        offer = _Offer(prefilled=prefilled, source=source, offered_s=self._clock())
        self._offers[prefilled.request_id] = offer

    def pull(self) -> None:
        """Begin the copies for which there is room now: to be called after every step."""
        while self._offers and self._accepts():
            request_id, offer = next(iter(self._offers.items()))
            if request_id in self._stopping:
                return  # its earlier blocks are still written; soon it is as good as new
            try:
                has_room = self._begin(offer)
            except CapacityError as error:
                del self._offers[request_id]
                self._front.refused(self.name, request_id, str(error))
                continue
            if not has_room:
                return
            del self._offers[request_id]

    def _begin(self, offer: _Offer) -> bool:
        """Start one copy; False where there is no room for it now."""
        request_id = offer.prefilled.request_id
        if offer.source == self.name:  # it was a prefill instance when this request came
            if not self._scheduler.keep(request_id):
                return False
            self._front.pulling(self.name, request_id)
            self._front.pulled(self.name, request_id)
            return True
        request = offer.prefilled.to_request(offer.offered_s)
        missing = self._scheduler.reserve(request)
        if missing is None:
            return False
        self._pulls.add(request_id)
        own = self._scheduler.prompt_blocks(request)
        pairs = [(offer.prefilled.block_ids[i], own[i]) for i in missing]
        self._mover.start(request_id, offer.source, pairs)
        self._front.pulling(self.name, request_id)
        return True

    def moved(self, request_id: str) -> None:
        """A copy is complete."""
        if request_id in self._stopping:
            self.stopped(request_id)
            return
        self._pulls.remove(request_id)
        self._scheduler.land(request_id)
        self._front.pulled(self.name, request_id)

    def stopped(self, request_id: str) -> None:
        """A copy was given up or broke, and nothing is written any more."""
        self._scheduler.let_go(request_id)
        if request_id in self._pulls:
            self._pulls.remove(request_id)
            self._front.pull_failed(self.name, request_id)
        self._stopping.discard(request_id)

    def abort(self, request_id: str) -> None:
        """Forget a request wherever it stands here; unknown ids are ignored."""
        self._offers.pop(request_id, None)
        if request_id in self._pulls:
            self._pulls.remove(request_id)
            self._stopping.add(request_id)  # its blocks are still written
            self._mover.stop(request_id)
        self._scheduler.abort(request_id)

    def _accepts(self) -> bool:
        """Whether anything may be pulled: who lost its place here goes first."""
        scheduler = self._scheduler
        most = self._max_landed_share * scheduler.blocks.num_blocks
        return not scheduler.num_preempted and scheduler.num_landed_blocks <= most
