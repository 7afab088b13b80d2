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
    """Who is told, of each offer by its number, how it goes: the coordinator."""

    def pulling(self, request_id: str, offer: int) -> None:
        """Blocks are set aside and a copy has begun."""
        ...

    def pulled(self, request_id: str, offer: int) -> None:
        """The copy is complete: the prefill instance may free its blocks."""
        ...

    def pull_failed(self, request_id: str, offer: int) -> None:
        """The copy ended halfway, and what was set aside for it is free."""
        ...

    def refused(self, request_id: str, offer: int, reason: str) -> None:
        """The request can never run here."""
        ...


@dataclass(frozen=True, kw_only=True)
class _Offer:
    prefilled: Prefilled
    source: str
    number: int
    offered_s: float


class Receiver:
    """Offers in, pulls out. First come, first pulled: a large one is not passed by small ones.

    But what this instance prefilled itself is taken first: it holds its blocks already, and while it
    waited behind one that lacks those blocks, neither could go on.

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
        self._pulls: dict[str, int] = {}  # request id to number of its offer
        self._stopping: set[str] = set()

    @property
    def num_offers(self) -> int:
        """Requests that wait to be pulled."""
        return len(self._offers)

    @property
    def num_pulls(self) -> int:
        """Copies that have begun and not ended, those given up included."""
        return len(self._pulls) + len(self._stopping)

    def offer(self, prefilled: Prefilled, source: str, number: int) -> None:
        """Let a request wait to be pulled from `source`."""
        self._offers[prefilled.request_id] = _Offer(
            prefilled=prefilled, source=source, number=number, offered_s=self._clock()
        )

    def pull(self) -> None:
        """Begin the copies for which there is room now: to be called after every step."""
        for offer in [o for o in self._offers.values() if o.source == self.name]:
            self._take(offer, self._keep)
        while self._offers and self._accepts():
            if not self._take(next(iter(self._offers.values())), self._begin):
                return

    def _take(self, offer: _Offer, take: Callable[[_Offer], bool]) -> bool:
        """Whether an offer waits no longer: there was room for it, or there never will be."""
        request_id = offer.prefilled.request_id
        if request_id in self._stopping:
            return False  # its earlier blocks are still written; soon it is as good as new
        try:
            if not take(offer):
                return False
        except CapacityError as error:
            self._front.refused(request_id, offer.number, str(error))
        self._offers.pop(request_id, None)  # who refuses it may have withdrawn it
        return True

    def _keep(self, offer: _Offer) -> bool:
        """Go on with what this instance prefilled; False where it lacks a block now."""
        request_id = offer.prefilled.request_id
        if not self._scheduler.keep(request_id):
            return False
        self._front.pulling(request_id, offer.number)
        self._front.pulled(request_id, offer.number)
        return True

    def _begin(self, offer: _Offer) -> bool:
        """Start one copy; False where there is no room for it now."""
        if offer.source == self.name:
            return False
        request_id = offer.prefilled.request_id
        request = offer.prefilled.to_request(offer.offered_s)
        missing = self._scheduler.reserve(request)
        if missing is None:
            return False
        self._pulls[request_id] = offer.number
        own = self._scheduler.prompt_blocks(request)
        pairs = [(offer.prefilled.block_ids[i], own[i]) for i in missing]
        self._mover.start(request_id, offer.source, pairs)
        self._front.pulling(request_id, offer.number)
        return True

    def moved(self, request_id: str) -> None:
        """A copy is complete."""
        if request_id in self._stopping:
            self.stopped(request_id)
            return
        number = self._pulls.pop(request_id)
        self._scheduler.land(request_id)
        self._front.pulled(request_id, number)

    def stopped(self, request_id: str) -> None:
        """A copy was given up or broke, and nothing is written any more."""
        self._scheduler.let_go(request_id)
        number = self._pulls.pop(request_id, None)
        if number is not None:
            self._front.pull_failed(request_id, number)
        self._stopping.discard(request_id)

    def abort(self, request_id: str) -> None:
        """Forget a request wherever it stands here; unknown ids are ignored."""
        self._offers.pop(request_id, None)
        if self._pulls.pop(request_id, None) is not None:
            self._stopping.add(request_id)  # its blocks are still written
            self._mover.stop(request_id)
        self._scheduler.abort(request_id)

    def _accepts(self) -> bool:
        """Whether anything may be pulled: who lost its place here goes first."""
        scheduler = self._scheduler
        most = self._max_landed_share * scheduler.blocks.num_blocks
        return not scheduler.num_preempted and scheduler.num_landed_blocks <= most
