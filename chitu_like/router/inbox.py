"""Where the news of one call's requests wait for whoever writes its answer. Bounded."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable

from chitu_like.core.errors import ChituError
from chitu_like.core.output import RequestDelta

MAX_PENDING_DELTAS = 1024
"""Deltas per request that may wait; a reader this many steps behind is not reading."""


class Inbox:
    """Deltas of the requests of one HTTP call, in the order the engines sent them.

    Belongs to one event loop; one task reads.

    Args:
        request_ids: the requests it receives for.

    Attributes:
        open_ids: requests that have not finished.
        closed: set when nothing more will come before all requests have finished: the reader was
            too slow, or the engines failed. A writer stuck in a socket watches it.
    """

    def __init__(self, request_ids: Iterable[str]) -> None:
        self.open_ids = set(request_ids)
        self.closed = asyncio.Event()
        self._max_pending = MAX_PENDING_DELTAS * len(self.open_ids)
        self._pending: list[RequestDelta] = []
        self._waiter: asyncio.Future[None] | None = None
        self._error: ChituError | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = math.inf

    def push(self, delta: RequestDelta) -> bool:
        """Take a delta; False when there is no room for it, and nothing was taken."""
        if len(self._pending) >= self._max_pending:
            return False
        if delta.finish_reason is not None:
            self.open_ids.discard(delta.request_id)
        self._pending.append(delta)
        self._wake()
        return True

    def fail(self, error: ChituError) -> None:
        """Close: after what is pending, the reader gets `error`. The first error stays."""
        self._error = self._error or error
        self.open_ids.clear()
        self.closed.set()
        self._wake()

    async def get(self, timeout_s: float | None = None) -> list[RequestDelta]:
        """Wait for news; return all that piled up, nothing after `timeout_s` without any.

        Raises: the error given to `fail`.
        """
        if not self._pending and self._error is None:
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            self._due_s = math.inf if timeout_s is None else loop.time() + timeout_s
            self._set_timer(loop)
            try:
                await self._waiter
            finally:
                self._waiter = None
                if not self.open_ids:
                    self._drop_timer()
        if not self._pending and self._error is not None:
            raise self._error
        pending, self._pending = self._pending, []
        return pending

    def _set_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        """See to it that the wait ends in time.

        One timer serves many waits, since one for each token would cost more than the token: it may
        ring before the present wait is over, and is then set again.
        """
        if self._timer is not None and self._timer.when() > self._due_s:
            self._drop_timer()
        if self._timer is None and self._due_s < math.inf:
            self._timer = loop.call_at(self._due_s, self._ring)

    def _drop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        if loop.time() >= self._due_s:
            self._wake()
        elif self._waiter is not None:
            self._set_timer(loop)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
