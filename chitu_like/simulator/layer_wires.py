"""What passes between nodes that hold layers: requests under way, and the wires they go along.

Requests pass here once for each node and token, millions of times, so these classes are small and mutable.
"""

from __future__ import annotations

from typing import Protocol

from chitu_like.router.flow_edges import Route
from chitu_like.simulator.clock import VirtualClock


class Receiver(Protocol):
    """Where a wire ends: a node's layer, or the coordinator."""

    def add(self, passage: Passage) -> None:
        """Take what arrived just now."""
        ...

    def release(self, num_tokens: int) -> None:
        """Forget the keys and values of so many tokens of a request that came along here."""
        ...


class Coordinator(Receiver, Protocol):
    """Where requests start and tokens come back to."""

    def extend(self, passage: Passage) -> None:
        """Decide its next wire; its prompt has passed the node behind the last."""
        ...


class Passage:
    """A request under way: its prompt first, then one token after the other.

    Args:
        coordinator: at the end of the last wire.

    Attributes:
        index: its place in the workload.
        route: its way, as the router knows it.
        wires: the same way here; as far as is decided.
        position: index of the wire that it is on, or that brought it where it is.
        is_prompt: whether the prompt is under way, else a decode.
        num_tokens: that are under way: the prompt's, or one.
        num_input: tokens of the prompt.
        num_output: tokens it was answered with so far.
        max_output: tokens it will be answered with.
        born_s: when it came.
        first_s: when its first token was there; before that, when it came.
        since_s: when it arrived where it waits.
    """

    __slots__ = (
        "born_s",
        "coordinator",
        "first_s",
        "index",
        "is_prompt",
        "max_output",
        "num_input",
        "num_output",
        "num_tokens",
        "position",
        "route",
        "since_s",
        "wires",
    )

    def __init__(
        self,
        coordinator: Coordinator,
        index: int,
        route: Route,
        wires: list[Wire],
        *,
        num_input: int,
        max_output: int,
        born_s: float,
    ) -> None:
        self.coordinator = coordinator
        self.index = index
        self.route = route
        self.wires = wires
        self.position = 0
        self.is_prompt = True
        self.num_input = self.num_tokens = num_input
        self.num_output = 0
        self.max_output = max_output
        self.born_s = self.first_s = self.since_s = born_s

    def arrive(self) -> None:
        """Be at the end of the wire."""
        self.wires[self.position].target.add(self)

    def send_on(self) -> None:
        """Leave the node it has passed: tokens for the next, one for the coordinator."""
        self.position += 1
        if self.position == len(self.wires):
            self.coordinator.extend(self)
        wire = self.wires[self.position]
        if wire.target is self.coordinator:
            self.num_tokens = 1
        wire.send(self)

    def release(self) -> None:
        """Let go of all that nodes keep for it; the last token never went through them."""
        num_tokens = self.num_input + self.num_output - 1
        for wire in self.wires:
            wire.target.release(num_tokens)


class Wire:
    """One direction of a link: one message at a time, in the order in which they were sent.

    Args:
        clock: of the simulation.
        target: where it ends.
        latency_s: of each message.
        bandwidth: bytes/s.
        token_bytes: of each token.
        holds_latency: whether a message keeps the wire until it has arrived, as Helix counts; else the
            next may follow its last byte, as on a real wire.

    Attributes:
        target: where it ends.
        num_bytes: sent so far.
    """

    __slots__ = (
        "_busy_s",
        "_clock",
        "_early_s",
        "_free_s",
        "_latency_s",
        "_num_tokens",
        "_token_bytes",
        "_token_s",
        "target",
    )

    def __init__(
        self,
        clock: VirtualClock,
        target: Receiver,
        *,
        latency_s: float,
        bandwidth: float,
        token_bytes: float,
        holds_latency: bool = True,
    ) -> None:
        self._clock = clock
        self._latency_s = latency_s
        self._token_bytes = token_bytes
        self._token_s = token_bytes / bandwidth
        self._early_s = 0.0 if holds_latency else latency_s
        self._free_s = 0.0
        self._busy_s = 0.0
        self._num_tokens = 0
        self.target = target

    def send(self, passage: Passage) -> None:
        """Let it arrive when those before it are through and it is too."""
        clock, num_tokens = self._clock, passage.num_tokens
        start_s = self._free_s
        if start_s < clock.now_s:
            start_s = clock.now_s
        arrival_s = start_s + (self._latency_s + self._token_s * num_tokens)
        self._free_s = arrival_s - self._early_s
        self._busy_s += self._free_s - start_s
        self._num_tokens += num_tokens
        clock.at(arrival_s, passage.arrive)

    @property
    def num_bytes(self) -> float:
        """Sent so far, or waiting to be."""
        return self._num_tokens * self._token_bytes

    @property
    def busy_s(self) -> float:
        """Seconds in which something was on it, up to now."""
        return self._busy_s - max(0.0, self._free_s - self._clock.now_s)
