"""All ranks of an instance, as its leader moves them from Load to the first batch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from chitu_like.core.errors import PeerError
from chitu_like.engine.executor import Executor
from chitu_like.worker.executor import LocalExecutor
from chitu_like.worker.local_rank import LocalRank, Node
from chitu_like.worker.losses import Channel, Losses
from chitu_like.worker.messages import (
    Allocate,
    Allocated,
    Failed,
    FromWorker,
    Load,
    Loaded,
    Plan,
    Planned,
    Prepare,
    Prepared,
    Stop,
    ToWorker,
)
from chitu_like.worker.torchrun_executor import TorchrunExecutor

Answer = TypeVar("Answer", bound=FromWorker)

DISMISSAL_TIMEOUT_S = 1.0
"""Workers get this to be through with what they do; the user waits for what the leader has to say."""


class Crew:
    """The leader's own rank and, behind a channel, the workers.

    `prepare`, `load`, `plan` and `allocate` return one answer a rank, the leader's first. What goes
    wrong on a worker is raised here: as a ChituError if it is the user's mistake, else as a PeerError.

    Args:
        own: the leader's rank.
        channel: to the workers, all of them there; None: the leader is the only rank.
        losses: told by the channel of lost ranks.
    """

    def __init__(
        self, own: LocalRank, channel: Channel | None = None, losses: Losses | None = None
    ) -> None:
        self._own = own
        self._channel = channel
        self._losses = losses or Losses([0])

    @property
    def node(self) -> Node:
        """Where the leader runs."""
        return self._own.node

    def prepare(self, order: Prepare) -> list[Prepared]:
        """See whether all ranks can take part."""
        return self._all("at the start", order, Prepared, lambda: self._own.prepare(order))

    def load(self, order: Load, *, progress: bool) -> list[Loaded]:
        """Load on all ranks at once."""

        def own() -> Loaded:
            return self._own.load(order, progress=progress)

        return self._all("while loading", order, Loaded, own)

    def plan(self, order: Plan) -> list[Planned]:
        """Plan the memory of all ranks, which run the same profile batches together."""
        return self._all("in the profile run", order, Planned, lambda: self._own.plan(order))

    def allocate(self, order: Allocate) -> list[Allocated]:
        """Make the KV pools."""
        return self._all("while allocating", order, Allocated, lambda: self._own.allocate(order))

    def executor(self, *, overlap: bool) -> Executor:
        """What computes batches on all ranks. Shutting it down stops them."""
        if self._channel is None:
            return LocalExecutor(self._own.runner, max_in_flight=2 if overlap else 1)
        return TorchrunExecutor(self._own, self._channel, self._losses, overlap=overlap)

    def dismiss(self) -> None:
        """Give up before there is an executor, for a reason that only the leader tells.

        Workers that are busy for longer find the channel closed, and end with 1.
        """
        if self._channel is not None:
            with suppress(PeerError):  # a lost worker is the very reason, most likely
                self._channel.stop(Stop(), DISMISSAL_TIMEOUT_S)

    def _all(
        self, doing: str, order: ToWorker, kind: type[Answer], own: Callable[[], Answer]
    ) -> list[Answer]:
        """Have all ranks follow an order; this one while the workers do."""
        self._losses.doing = doing
        with self._losses.explained():
            if self._channel is not None:
                self._channel.send(order)
            return [own(), *self._answers(kind)]

    def _answers(self, kind: type[Answer]) -> list[Answer]:
        """One answer of every worker, by rank."""
        found: dict[int, Answer] = {}
        while self._channel is not None and len(found) < self._losses.num_workers:
            rank, answer = self._channel.receive()
            if isinstance(answer, Failed):
                raise self._losses.failure(rank, answer)
            if not isinstance(answer, kind):
                raise PeerError(f"rank {rank} of the instance answered {type(answer).__name__}")
            found[rank] = answer
        return [found[rank] for rank in sorted(found)]
