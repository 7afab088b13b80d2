"""Leads every request through its phases: in the front-end process, by messages, without a clock of its own.

Whatever goes wrong in a phase ends in `_leave`, which takes back what the request holds there. Messages
that cross each other are answered for: news of a request that is not led any more frees what it speaks of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Protocol

from chitu_like.disagg.handoff import AT_DECODE, AT_PREFILL, Handoff, Leases, Phase
from chitu_like.engine.messages import AddRequest
from chitu_like.scheduler.prefilled import Prefilled


class PrefillPeer(Protocol):
    """A prefill instance, as far as crossings see it."""

    def add_prefill(self, message: AddRequest) -> None:
        """Compute a prompt and the first token; Coordinator.prefilled or .finished follows."""
        ...

    def abort(self, request_id: str) -> None:
        """Forget a request that has not come through its prompt; others are ignored."""
        ...

    def let_go(self, request_id: str) -> None:
        """Free the blocks of one that has; others are ignored."""
        ...


class DecodePeer(Protocol):
    """A decode instance: its Receiver."""

    def offer(self, prefilled: Prefilled, source: str, number: int) -> None:
        """Let it pull a request when it has room; its news of it bear the number."""
        ...

    def abort(self, request_id: str) -> None:
        """Forget a request wherever it stands there; unknown ids are ignored."""
        ...


class Coordinator:
    """Requests in, crossings led, failures told.

    Args:
        clock: seconds that never go back.
        leases: how long a phase may last.
        on_failed: told the id and one sentence for each request that cannot go on.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        leases: Leases,
        on_failed: Callable[[str, str], None],
    ) -> None:
        """Start without instances."""
        self._clock = clock
        self._leases = leases
        self._on_failed = on_failed
        self._prefills: dict[str, PrefillPeer] = {}
        self._decodes: dict[str, DecodePeer] = {}
        self._draining: set[tuple[str, bool]] = set()
        self._handoffs: dict[str, Handoff] = {}
        self._loads: Counter[tuple[str | None, bool]] = Counter()

    # Instances come and go

    def add_prefill(self, name: str, peer: PrefillPeer) -> None:
        """A prefill instance serves from now on; it may be a decode instance as well."""
        self._draining.discard((name, False))
        self._prefills[name] = peer
        for handoff in self._in_phase(Phase.WAITING):
            self._send(handoff)

    def add_decode(self, name: str, peer: DecodePeer) -> None:
        """A decode instance serves from now on; likewise."""
        self._draining.discard((name, True))
        self._decodes[name] = peer
        for handoff in self._in_phase(Phase.BRIDGE):
            if handoff.decode is None:
                self._offer(handoff)

    def drain(self, name: str) -> None:
        """An instance gets nothing new; what it was offered and does not pull is offered elsewhere.

        But for what it prefilled itself: it may have taken that already, and there is no other copy.
        """
        self._draining |= {(name, False), (name, True)}
        for handoff in self._in_phase(Phase.BRIDGE):
            if name == handoff.decode != handoff.prefill:
                self._offer(handoff)

    def is_idle(self, name: str) -> bool:
        """Whether no request needs an instance any more, so that it may go or change its role."""
        return not any(
            (h.phase in AT_PREFILL and h.prefill == name)
            or (h.phase in AT_DECODE and h.decode == name)
            for h in self._handoffs.values()
        )

    def lose(self, name: str) -> None:
        """An instance is gone with all it held: nothing is sent to it any more."""
        self._prefills.pop(name, None)
        self._decodes.pop(name, None)
        self._draining -= {(name, False), (name, True)}
        for handoff in list(self._handoffs.values()):
            phase = handoff.phase
            if phase in AT_PREFILL and handoff.prefill == name:
                self._fail(handoff, f"prefill instance {name} was lost")
            elif phase in AT_DECODE and handoff.decode == name:
                if phase is Phase.DECODE:
                    self._fail(handoff, f"decode instance {name} was lost")
                else:
                    self._back_to_bridge(handoff, f"decode instance {name} was lost")

    # Requests

    @property
    def num_open(self) -> int:
        """Requests on their way."""
        return len(self._handoffs)

    def phase(self, request_id: str) -> Phase:
        """Where a request stands; ENDED for one that is not known."""
        handoff = self._handoffs.get(request_id)
        return handoff.phase if handoff else Phase.ENDED

    def count(self, phase: Phase) -> int:
        """Requests in a phase."""
        return len(self._in_phase(phase))

    def num_tokens(self, phase: Phase) -> int:
        """Prompt tokens of the requests in a phase."""
        return sum(handoff.num_prompt_tokens for handoff in self._in_phase(phase))

    def load(self, name: str) -> int:
        """Prompt tokens of the requests that an instance has to prefill, and of those it decodes."""
        return self._loads[name, False] + self._loads[name, True]

    def add(self, message: AddRequest) -> None:
        """Lead a request from its beginning."""
        handoff = Handoff(message, self._clock() + self._leases.waiting_s)
        self._handoffs[message.request_id] = handoff
        self._send(handoff)

    def abort(self, request_id: str) -> None:
        """Nobody wants the answer; unknown ids are ignored."""
        handoff = self._handoffs.get(request_id)
        if handoff is not None:
            self._leave(handoff)

    def expire(self) -> None:
        """Take back the leases that have ended: to be called now and then."""
        now_s = self._clock()
        for handoff in [h for h in self._handoffs.values() if h.deadline_s <= now_s]:
            sentence = f"no progress in phase {handoff.phase.value} for too long"
            if handoff.phase is Phase.PULL:
                self._back_to_bridge(handoff, sentence)
            else:
                self._fail(handoff, sentence)

    # News from the instances

    def prefilled(self, name: str, prefilled: Prefilled) -> None:
        """An instance computed a prompt and keeps its blocks."""
        handoff = self._handoffs.get(prefilled.request_id)
        if handoff is None or (handoff.phase, handoff.prefill) != (Phase.PREFILL, name):
            if peer := self._prefills.get(name):
                peer.let_go(prefilled.request_id)
            return
        handoff.prefilled = prefilled
        self._enter(handoff, Phase.BRIDGE)
        self._offer(handoff)

    def pulling(self, request_id: str, offer: int) -> None:
        """A decode instance has begun to copy."""
        if handoff := self._led_by(request_id, offer, Phase.BRIDGE):
            self._enter(handoff, Phase.PULL)

    def pulled(self, request_id: str, offer: int) -> None:
        """A decode instance has it all."""
        if handoff := self._led_by(request_id, offer, Phase.PULL):
            self._let_go(handoff)
            self._enter(handoff, Phase.DECODE)

    def pull_failed(self, request_id: str, offer: int) -> None:
        """A copy ended halfway."""
        if handoff := self._led_by(request_id, offer, Phase.PULL):
            self._back_to_bridge(handoff, f"its blocks could not be copied to {handoff.decode}")

    def refused(self, request_id: str, offer: int, reason: str) -> None:
        """A decode instance can never run it."""
        if handoff := self._led_by(request_id, offer, Phase.BRIDGE):
            self._fail(handoff, reason)

    def speaks_for(self, name: str, request_id: str) -> bool:
        """Whether the tokens that an instance sends for a request are the answer's.

        They are not where its lease ended while it sent them: another instance goes on instead.
        """
        handoff = self._handoffs.get(request_id)
        if handoff is None:
            return False
        is_decoding = handoff.phase is Phase.DECODE and handoff.decode == name
        return is_decoding or (handoff.phase is Phase.PREFILL and handoff.prefill == name)

    def finished(self, name: str, request_id: str) -> None:
        """Its last delta came from the instance that had it, which has freed what it held."""
        if self.speaks_for(name, request_id):
            self._forget(self._handoffs[request_id])

    # Parts

    def _send(self, handoff: Handoff) -> None:
        """To the prefill instance with the fewest prompt tokens, if there is any."""
        name = self._least_loaded(self._prefills, is_decode=False)
        if name is not None:
            handoff.prefill = name
            self._enter(handoff, Phase.PREFILL)
            self._prefills[name].add_prefill(handoff.message)

    def _offer(self, handoff: Handoff) -> None:
        """To a decode instance, another one than before where there is a choice."""
        request_id, before = handoff.message.request_id, handoff.decode
        if before in self._decodes:
            self._decodes[before].abort(request_id)
        others = [name for name in self._decodes if name != before]
        name = self._least_loaded(others, is_decode=True)
        if name is None:
            name = self._least_loaded(self._decodes, is_decode=True)
        self._weigh(handoff, -1)
        handoff.decode = name
        self._weigh(handoff, 1)
        handoff.num_offers += 1  # where there is nobody, too: the one before is withdrawn
        if name is not None:
            if handoff.prefilled is None or handoff.prefill is None:
                raise RuntimeError(f"{request_id} is offered before it was prefilled")
            self._decodes[name].offer(handoff.prefilled, handoff.prefill, handoff.num_offers)

    def _least_loaded(self, names: Iterable[str], *, is_decode: bool) -> str | None:
        serving = [name for name in names if (name, is_decode) not in self._draining]
        return min(serving, key=lambda name: self._loads[name, is_decode], default=None)

    def _back_to_bridge(self, handoff: Handoff, reason: str) -> None:
        """Its blocks are still at the prefill instance: another decode instance may pull them."""
        has_other_copy = handoff.decode != handoff.prefill
        if handoff.num_pulls >= self._leases.max_pulls or not has_other_copy:
            self._fail(handoff, reason)
            return
        if handoff.phase is Phase.PULL:
            self._enter(handoff, Phase.BRIDGE)
        self._offer(handoff)

    def _fail(self, handoff: Handoff, reason: str) -> None:
        self._leave(handoff)
        self._on_failed(handoff.message.request_id, reason)

    def _leave(self, handoff: Handoff) -> None:
        """Take back whatever a request holds, and forget it. Who would pull hears of it first."""
        request_id, phase = handoff.message.request_id, handoff.phase
        if phase in AT_DECODE and handoff.decode in self._decodes:
            self._decodes[handoff.decode].abort(request_id)
        if phase is Phase.PREFILL and handoff.prefill in self._prefills:
            self._prefills[handoff.prefill].abort(request_id)
        elif phase in AT_PREFILL:
            self._let_go(handoff)
        self._forget(handoff)

    def _let_go(self, handoff: Handoff) -> None:
        if handoff.prefill in self._prefills:
            self._prefills[handoff.prefill].let_go(handoff.message.request_id)

    def _forget(self, handoff: Handoff) -> None:
        self._enter(handoff, Phase.ENDED)
        del self._handoffs[handoff.message.request_id]

    def _enter(self, handoff: Handoff, phase: Phase) -> None:
        self._weigh(handoff, -1)
        handoff.enter(phase, self._clock() + self._leases.seconds(phase))
        self._weigh(handoff, 1)

    def _weigh(self, handoff: Handoff, sign: int) -> None:
        """Count a request's prompt tokens where it stands, or no longer."""
        if handoff.phase is Phase.PREFILL:
            self._loads[handoff.prefill, False] += sign * handoff.num_prompt_tokens
        elif handoff.phase in AT_DECODE:
            self._loads[handoff.decode, True] += sign * handoff.num_prompt_tokens

    def _led_by(self, request_id: str, offer: int, phase: Phase) -> Handoff | None:
        """The record that news of an offer is about, unless it is out of date."""
        handoff = self._handoffs.get(request_id)
        if handoff is None or (handoff.phase, handoff.num_offers) != (phase, offer):
            return None
        return handoff

    def _in_phase(self, phase: Phase) -> list[Handoff]:
        return [handoff for handoff in self._handoffs.values() if handoff.phase is phase]
