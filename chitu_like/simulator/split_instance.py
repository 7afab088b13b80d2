"""A simulated instance as crossings see it: it prefills, it is pulled from, it pulls."""

from __future__ import annotations

import functools
from collections.abc import Callable

from chitu_like.core.output import RequestDelta
from chitu_like.disagg.coordinator import Coordinator
from chitu_like.disagg.receiver import Receiver
from chitu_like.engine.messages import AddRequest
from chitu_like.scheduler.prefilled import Prefilled
from chitu_like.simulator.clock import VirtualClock
from chitu_like.simulator.instance import InstanceShape, SimulatedInstance
from chitu_like.simulator.kv_network import KvCopy, KvNetwork
from chitu_like.simulator.recorder import Recorder


class SplitInstance:
    """PrefillPeer, DecodePeer and Mover of one instance; messages between processes take no time.

    A copy begins when its blocks are set aside. In service it waits for the batches in flight, a step
    or two, which is short beside the copy.

    Args:
        name: unique among instances.
        shape: what it is.
        clock: of the simulation.
        coordinator: leads its requests.
        network: carries keys and values.
        kv_block_bytes: of a block on all stages together.
        on_deltas: told of the news of every step, with the instance's name.
        recorder: told of everything else.
        max_landed_share: as in Receiver.
    """

    def __init__(
        self,
        name: str,
        shape: InstanceShape,
        clock: VirtualClock,
        coordinator: Coordinator,
        network: KvNetwork,
        kv_block_bytes: float,
        on_deltas: Callable[[str, list[RequestDelta]], None],
        recorder: Recorder,
        max_landed_share: float,
    ) -> None:
        """Start idle."""
        self.name = name
        self.instance = SimulatedInstance(name, shape, clock, self._news, recorder=recorder)
        self._clock = clock
        self._coordinator = coordinator
        self._network = network
        self._kv_block_bytes = kv_block_bytes
        self._on_deltas = on_deltas
        self._copies: dict[str, KvCopy] = {}
        self._receiver = Receiver(
            name,
            self.instance.scheduler,
            self,
            coordinator,
            clock,
            max_landed_share=max_landed_share,
        )

    @property
    def is_empty(self) -> bool:
        """Whether it holds nothing of any request."""
        scheduler, receiver = self.instance.scheduler, self._receiver
        is_busy = self.instance.engine.has_requests or scheduler.num_crossing
        return not (is_busy or receiver.num_offers or receiver.num_pulls)

    def fail(self) -> None:
        """It is lost in the middle of whatever it does."""
        self.instance.fail()
        for copy in self._copies.values():
            copy.cancel()
        self._copies.clear()

    # PrefillPeer and DecodePeer

    def add_prefill(self, message: AddRequest) -> None:
        """See PrefillPeer."""
        self.instance.engine.add_prefill(message)
        self.instance.wake()

    def let_go(self, request_id: str) -> None:
        """See PrefillPeer."""
        self.instance.engine.let_go(request_id)
        self.instance.wake()

    def offer(self, prefilled: Prefilled, source: str, number: int) -> None:
        """See DecodePeer."""
        self._receiver.offer(prefilled, source, number)
        self._clock.after(0.0, self._pull)

    def abort(self, request_id: str) -> None:
        """See both."""
        self._receiver.abort(request_id)
        self.instance.wake()

    # Mover

    def start(self, request_id: str, source: str, blocks: list[tuple[int, int]]) -> None:
        """See Mover."""
        self._copies[request_id] = self._network.copy(
            source,
            self.name,
            len(blocks) * self._kv_block_bytes,
            functools.partial(self._copied, request_id),
        )

    def stop(self, request_id: str) -> None:
        """See Mover."""
        self._copies.pop(request_id).cancel()
        self._clock.after(0.0, functools.partial(self._receiver.stopped, request_id))

    def _copied(self, request_id: str) -> None:
        del self._copies[request_id]
        self._receiver.moved(request_id)
        self.instance.wake()

    # News

    def _news(self, deltas: list[RequestDelta]) -> None:
        self._on_deltas(self.name, deltas)
        for prefilled in self.instance.engine.take_prefilled():
            self._coordinator.prefilled(self.name, prefilled)
        self._pull()

    def _pull(self) -> None:
        num_offers = self._receiver.num_offers
        if num_offers and self.instance.is_up:
            self._receiver.pull()
            if self._receiver.num_offers < num_offers:
                self.instance.wake()  # what it keeps for itself has landed
