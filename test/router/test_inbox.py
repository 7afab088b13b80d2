"""Waiting for news: every wait ends in time, though one timer serves many."""

from __future__ import annotations

import asyncio
import time

import pytest

from chitu_like.core.output import FinishReason, RequestDelta
from chitu_like.router.inbox import Inbox


async def wait(inbox: Inbox, timeout_s: float | None) -> float:
    """Seconds until `get` comes back with nothing."""
    start_s = time.monotonic()
    assert await inbox.get(timeout_s) == []
    return time.monotonic() - start_s


@pytest.mark.parametrize("first_s", [0.01, 0.05, 5.0])
def test_a_wait_is_as_long_as_asked_whatever_was_asked_before(first_s: float) -> None:
    async def run() -> None:
        inbox = Inbox(["a"])
        inbox.push(RequestDelta("a", [1]))
        assert len(await inbox.get(first_s)) == 1
        asyncio.get_running_loop().call_soon(inbox.push, RequestDelta("a", [2]))
        assert len(await inbox.get(first_s)) == 1  # its timer goes on
        for timeout_s in (0.05, 0.1, 0.02):
            assert timeout_s - 0.001 < await wait(inbox, timeout_s) < timeout_s + 0.5

    asyncio.run(asyncio.wait_for(run(), 10))


def test_a_wait_without_an_end_is_not_ended_by_an_older_timer() -> None:
    async def run() -> None:
        inbox = Inbox(["a"])
        loop = asyncio.get_running_loop()
        loop.call_soon(inbox.push, RequestDelta("a", [1]))
        assert len(await inbox.get(0.02)) == 1
        loop.call_later(0.1, inbox.push, RequestDelta("a", [2], finish_reason=FinishReason.STOP))
        assert [delta.token_ids for delta in await inbox.get(None)] == [[2]]

    asyncio.run(asyncio.wait_for(run(), 10))


def test_thousands_of_tokens_set_one_timer() -> None:
    async def run() -> int:
        loop, inbox = asyncio.get_running_loop(), Inbox(["a"])
        set_at = []
        call_at = loop.call_at
        loop.call_at = lambda *args, **more: (set_at.append(args[0]), call_at(*args, **more))[1]
        for token in range(2000):
            loop.call_soon(inbox.push, RequestDelta("a", [token]))
            assert [delta.token_ids for delta in await inbox.get(10.0)] == [[token]]
        return len(set_at)

    assert asyncio.run(asyncio.wait_for(run(), 10)) == 1
