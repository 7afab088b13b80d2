"""One request's crossing from a prefill instance to a decode instance (DistServe, OSDI'24).

    WAITING -> PREFILL -> BRIDGE -> PULL -> DECODE -> ENDED

What it holds hangs on the phase alone: a place and blocks at its prefill instance from PREFILL to PULL,
an offer or blocks at its decode instance from BRIDGE to DECODE. So leaving a phase says what to free.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from chitu_like.engine.messages import AddRequest
from chitu_like.scheduler.prefilled import Prefilled


class Phase(Enum):
    """Where a crossing stands."""

    WAITING = "waiting"  # for a prefill instance to be there
    PREFILL = "prefill"  # queued or computed at one
    BRIDGE = "bridge"  # computed; a decode instance has no room yet
    PULL = "pull"  # a decode instance copies the blocks
    DECODE = "decode"
    ENDED = "ended"


NEXT: dict[Phase, set[Phase]] = {
    Phase.WAITING: {Phase.PREFILL, Phase.ENDED},
    Phase.PREFILL: {Phase.BRIDGE, Phase.ENDED},  # ended: its first token was the last
    Phase.BRIDGE: {Phase.PULL, Phase.ENDED},
    Phase.PULL: {Phase.DECODE, Phase.BRIDGE, Phase.ENDED},  # back: the decode instance was lost
    Phase.DECODE: {Phase.ENDED},
    Phase.ENDED: set(),
}
AT_PREFILL = {Phase.PREFILL, Phase.BRIDGE, Phase.PULL}
AT_DECODE = {Phase.BRIDGE, Phase.PULL, Phase.DECODE}


@dataclass(frozen=True, kw_only=True)
class Leases:
    """Seconds that a crossing may spend in a phase; then what it holds is taken back.

    Attributes:
        waiting_s: without any prefill instance.
        prefill_s: at one, its queue included.
        bridge_s: until a decode instance takes it.
        pull_s: of one copy.
        max_pulls: copies begun for one request; after that many that failed it fails.
    """

    waiting_s: float = 60.0
    prefill_s: float = 600.0
    bridge_s: float = 600.0
    pull_s: float = 30.0
    max_pulls: int = 3

    def seconds(self, phase: Phase) -> float:
        """How long a phase may last; a decode is the engine's business."""
        lengths = {
            Phase.WAITING: self.waiting_s,
            Phase.PREFILL: self.prefill_s,
            Phase.BRIDGE: self.bridge_s,
            Phase.PULL: self.pull_s,
        }
        return lengths.get(phase, float("inf"))


class Handoff:
    """The record of one crossing; only the coordinator writes it.

    Attributes:
        message: the request.
        phase: where it stands.
        prefill: the instance that computes its prompt; None while it waits for one.
        decode: the instance it was offered to; None where there was none.
        prefilled: set from BRIDGE on.
        num_offers: how often it was offered; news of an earlier offer are out of date.
        num_pulls: copies begun.
        deadline_s: when the lease of this phase ends.
    """

    __slots__ = (
        "deadline_s",
        "decode",
        "message",
        "num_offers",
        "num_pulls",
        "phase",
        "prefill",
        "prefilled",
    )

    def __init__(self, message: AddRequest, deadline_s: float) -> None:
        self.message = message
        self.phase = Phase.WAITING
        self.prefill: str | None = None
        self.decode: str | None = None
        self.prefilled: Prefilled | None = None
        self.num_offers = 0
        self.num_pulls = 0
        self.deadline_s = deadline_s

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens to prefill, then to copy."""
        return len(self.message.prompt_token_ids)

    def enter(self, phase: Phase, deadline_s: float) -> None:
        """Move on. Raises: RuntimeError where no crossing goes that way."""
        if phase not in NEXT[self.phase]:
            raise RuntimeError(
                f"{self.message.request_id} cannot go from {self.phase.value} to {phase.value}"
            )
        self.phase = phase
        self.deadline_s = deadline_s
        self.num_pulls += phase is Phase.PULL
