"""A prefill side and a decode side whose messages travel late, over executors that notice every lie."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

from scheduling import Rig, make_rig

from chitu_like.core.output import FinishReason
from chitu_like.core.sampling_params import SamplingParams
from chitu_like.disagg.coordinator import Coordinator
from chitu_like.disagg.handoff import Leases
from chitu_like.disagg.receiver import Receiver
from chitu_like.engine.messages import AddRequest
from chitu_like.scheduler.prefilled import Prefilled


class Wire:
    """Messages in order between two ends, delivered when the test says so; none once it is cut."""

    def __init__(self) -> None:
        self.queue: deque[Callable[[], None]] = deque()
        self.is_cut = False

    def send(self, message: Callable[[], None]) -> None:
        if not self.is_cut:
            self.queue.append(message)

    def deliver(self) -> None:
        if self.queue:
            self.queue.popleft()()

    def cut(self) -> None:
        self.is_cut = True
        self.queue.clear()


class Instance:
    """An instance behind two wires, its receiver, its mover and the front that the receiver talks to."""

    def __init__(self, name: str, world: World, rig: Rig) -> None:
        self.name, self.world, self.rig = name, world, rig
        self.to, self.back = Wire(), Wire()
        self.is_lost = False
        self.receiver = Receiver(name, rig.scheduler, self, self, lambda: rig.clock[0])
        self.copies: dict[str, tuple[str, list[tuple[int, int]]]] = {}

    @property
    def wires(self) -> tuple[Wire, Wire]:
        return self.to, self.back

    def step(self) -> None:
        self.receiver.pull()
        self.rig.step()
        tokens, ends = dict(self.rig.tokens), dict(self.rig.ends)
        self.rig.tokens.clear()
        self.rig.ends.clear()
        if tokens:
            self.back.send(lambda: self.world.hear(self.name, tokens, ends))
        for prefilled in self.rig.engine.take_prefilled():
            self._tell(prefilled)

    def _tell(self, prefilled: Prefilled) -> None:
        self.back.send(lambda: self.world.coordinator.prefilled(self.name, prefilled))

    # PrefillPeer

    def add_prefill(self, message: AddRequest) -> None:
        self.to.send(lambda: self.rig.engine.add_prefill(message))

    def let_go(self, request_id: str) -> None:
        self.to.send(lambda: self.rig.engine.let_go(request_id))

    # DecodePeer

    def offer(self, prefilled: Prefilled, source: str, number: int) -> None:
        self.to.send(lambda: self.receiver.offer(prefilled, source, number))

    def abort(self, request_id: str) -> None:
        self.to.send(lambda: self.receiver.abort(request_id))

    # Mover

    def start(self, request_id: str, source: str, blocks: list[tuple[int, int]]) -> None:
        assert request_id not in self.copies
        self.copies[request_id] = (source, blocks)

    def stop(self, request_id: str) -> None:
        assert request_id in self.copies

    def advance(self, rng: random.Random) -> None:
        """One copy goes on, arrives or breaks; also one that was to stop may still write."""
        if not self.copies:
            return
        request_id = rng.choice(sorted(self.copies))
        source, pairs = self.copies[request_id]
        peer = self.world.instances[source]
        if peer.is_lost or rng.random() < self.world.break_rate:
            del self.copies[request_id]
            self.receiver.stopped(request_id)
            return
        self.rig.executor.copy_blocks(peer.rig.executor, pairs[:1])
        if len(pairs) > 1:
            self.copies[request_id] = (source, pairs[1:])
        else:
            del self.copies[request_id]
            self.receiver.moved(request_id)

    # Front

    def pulling(self, request_id: str, offer: int) -> None:
        self.back.send(lambda: self.world.coordinator.pulling(request_id, offer))

    def pulled(self, request_id: str, offer: int) -> None:
        self.back.send(lambda: self.world.coordinator.pulled(request_id, offer))

    def pull_failed(self, request_id: str, offer: int) -> None:
        self.back.send(lambda: self.world.coordinator.pull_failed(request_id, offer))

    def refused(self, request_id: str, offer: int, reason: str) -> None:
        self.back.send(lambda: self.world.coordinator.refused(request_id, offer, reason))


class World:
    """Everything together, on a clock of its own."""

    def __init__(self, leases: Leases, *, break_rate: float = 0.0) -> None:
        self.now_s = 0.0
        self.break_rate = break_rate
        self.failed: dict[str, str] = {}
        self.ended: dict[str, FinishReason] = {}
        self.tokens: dict[str, list[int]] = {}
        self.instances: dict[str, Instance] = {}
        self.coordinator = Coordinator(lambda: self.now_s, leases, self._fail)

    def _fail(self, request_id: str, reason: str) -> None:
        assert request_id not in self.failed
        self.failed[request_id] = reason

    def add_prefill(self, name: str, **limits: int) -> Instance:
        instance = self._add_instance(name, **limits)
        self.coordinator.add_prefill(name, instance)
        return instance

    def add_decode(self, name: str, **limits: int) -> Instance:
        instance = self._add_instance(name, **limits)
        self.coordinator.add_decode(name, instance)
        return instance

    def _add_instance(self, name: str, **limits: int) -> Instance:
        instance = Instance(name, self, make_rig(**limits))  # type: ignore[arg-type]
        self.instances[name] = instance
        return instance

    def lose(self, name: str) -> None:
        instance = self.instances[name]
        instance.is_lost = True
        for wire in instance.wires:
            wire.cut()
        self.coordinator.lose(name)

    def add(self, name: str, prompt: list[int], **params: object) -> None:
        values = {"max_tokens": 6, "temperature": 0.0, **params}
        sampling = SamplingParams(**values)  # type: ignore[arg-type]
        self.coordinator.add(AddRequest(name, prompt, sampling))

    def hear(
        self, name: str, tokens: dict[str, list[int]], ends: dict[str, list[FinishReason]]
    ) -> None:
        """A step message, as the front end takes it."""
        for request_id, new in tokens.items():
            if self.coordinator.speaks_for(name, request_id):
                self.tokens.setdefault(request_id, []).extend(new)
                if reasons := ends.get(request_id):
                    self.ended[request_id] = reasons[0]
                    self.coordinator.finished(name, request_id)

    def turn(self, rng: random.Random) -> None:
        """Something happens somewhere."""
        alive = [i for i in self.instances.values() if not i.is_lost]
        if alive:
            instance = rng.choice(alive)
            happenings: list[Callable[[], None]] = [
                instance.step,
                instance.to.deliver,
                instance.back.deliver,
                lambda: instance.advance(rng),
            ]
            rng.choice(happenings)()
        self.now_s += 1.0
        self.coordinator.expire()

    def is_quiet(self) -> bool:
        """Nobody has anything left to do or to say."""
        alive = [i for i in self.instances.values() if not i.is_lost]
        return (
            not self.coordinator.num_open
            and not any(wire.queue for i in alive for wire in i.wires)
            and not any(i.rig.engine.has_requests for i in alive)
            and not any(i.copies for i in alive)
        )

    def run(self, rng: random.Random, most: int = 40000) -> None:
        for _ in range(most):
            if self.is_quiet():
                return
            self.turn(rng)
        raise AssertionError(f"not quiet: {self.coordinator.num_open} open")
