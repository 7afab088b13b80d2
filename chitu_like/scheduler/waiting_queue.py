"""The requests that wait for a slot, in policy order."""

from __future__ import annotations

from collections.abc import Iterator

from chitu_like.core.request import Request, RequestState
from chitu_like.scheduler.policy import Ordering, Situation


class WaitingQueue:
    """New and preempted requests; sorted when somebody asks who is next.

    Args:
        ordering: who goes first.

    Attributes:
        num_new_tokens: prompt tokens of those that never ran.
        num_preempted: those that ran here and lost their places.
        num_landed: those that came prefilled and hold their blocks.
        is_sorted: nobody joined or was promoted since the last sort.
    """

    def __init__(self, ordering: Ordering) -> None:
        """Start empty."""
        self.num_new_tokens = 0
        self.num_preempted = 0
        self.num_landed = 0
        self.is_sorted = True
        self._ordering = ordering
        self._requests: list[Request] = []

    def __len__(self) -> int:
        """Requests that wait."""
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        """All of them in order; the queue must not change meanwhile."""
        return iter(self._requests)

    def first(self, count: int) -> list[Request]:
        """A copy of the first `count`."""
        return self._requests[:count]

    def add(self, request: Request) -> None:
        """Let a request wait: WAITING, PREEMPTED or, come prefilled, TRANSFERRING."""
        self._requests.append(request)
        self.is_sorted = False
        self._count(request, 1)

    def remove(self, request: Request) -> None:
        """Take a request out while its state is still that of waiting."""
        self._requests.remove(request)
        self._count(request, -1)

    def sort(self, situation: Situation) -> None:
        """Policy order; a static one is kept until someone joins or is promoted."""
        if self._ordering.is_static and self.is_sorted:
            return
        self._requests.sort(key=lambda request: self._ordering.rank(request, situation))
        self.is_sorted = True

    def _count(self, request: Request, sign: int) -> None:
        if request.state is RequestState.WAITING:
            self.num_new_tokens += sign * request.num_prompt_tokens
        self.num_preempted += sign * (request.state is RequestState.PREEMPTED)
        self.num_landed += sign * (request.state is RequestState.TRANSFERRING)
