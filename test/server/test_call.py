"""A call's news: what has piled up comes together, in order, and a failure comes behind it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence

import pytest

from chitu_like.core.errors import PeerError
from chitu_like.core.output import FinishReason, RequestDelta
from chitu_like.core.sampling_params import SamplingParams
from chitu_like.engine.messages import AddRequest, EngineInfo, EngineStats, StepMessage, ToFrontEnd
from chitu_like.router.router import Router
from chitu_like.server.call import Call, CallParts
from chitu_like.server.metrics import Metrics
from chitu_like.server.prompts import Prompt


class Talker:
    """An engine that has said all it will say once the call's reader gets its turn."""

    def __init__(self) -> None:
        self.said: list[StepMessage] = []
        self.aborted: list[str] = []

    def add(self, request: AddRequest) -> None: ...

    def abort(self, request_ids: Sequence[str]) -> None:
        self.aborted += request_ids

    def shutdown(self) -> None: ...

    def close(self) -> None: ...

    async def messages(self) -> AsyncIterator[ToFrontEnd]:
        for message in self.said:
            yield message
        await asyncio.Event().wait()

    async def wait_gone(self) -> None:
        await asyncio.Event().wait()


def news_of(
    ends: dict[str, FinishReason | None], num_tokens: int = 3, *, singly: bool = False
) -> tuple[list[list[int]], list[int], Exception | None]:
    """Two completions of which each gets so many tokens in as many steps, before anyone looks.

    Returns: the tokens of each lot of news, the tokens counted at that time, and what it failed with.
    """

    async def run() -> tuple[list[list[int]], list[int], Exception | None]:
        talker = Talker()
        router = Router([talker], max_queued_requests=9, max_queued_tokens=99)
        router.instances[0].info = EngineInfo(100, 4, 10, 16, 50)
        parts = CallParts(
            call_id="c",
            prompts=[Prompt(text=None, token_ids=[1])],
            params=SamplingParams(n=2, max_tokens=9),
            eos_token_ids=[],
            timeout_s=None,
            arrival_s=time.monotonic(),
        )
        call = Call(parts, router=router, tokenizer=None, metrics=Metrics("m", router.instances))
        for step in range(num_tokens):
            is_last = step == num_tokens - 1
            deltas = [
                RequestDelta(name, [step], finish_reason=end if is_last else None)
                for name, end in ends.items()
            ]
            talker.said.append(StepMessage(deltas, EngineStats()))
        pumping = asyncio.ensure_future(router.run())
        await asyncio.sleep(0.05)
        lots, counted, failure = [], [], None
        try:
            async for news in call.news(singly=singly):
                lots.append([token for delta in news for token in delta.token_ids])
                counted.append(call.usage().completion_tokens)
        except PeerError as error:
            failure = error
        call.close()
        pumping.cancel()
        return lots, counted, failure

    return asyncio.run(asyncio.wait_for(run(), 10))


def test_what_has_piled_up_comes_together() -> None:
    ends = {"c-0": FinishReason.LENGTH, "c-1": FinishReason.STOP}
    assert news_of(ends) == ([[0, 0, 1, 1, 2, 2]], [6], None)


def test_with_usage_in_every_chunk_each_is_counted_as_it_comes() -> None:
    ends = {"c-0": FinishReason.LENGTH, "c-1": FinishReason.LENGTH}
    lots, counted, _ = news_of(ends, singly=True)
    assert lots == [[0], [0], [1], [1], [2], [2]]
    assert counted == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("singly", [False, True])
def test_what_came_before_a_failure_is_told_first(singly: bool) -> None:
    ends = {"c-0": FinishReason.LENGTH, "c-1": FinishReason.ERROR}
    lots, _, failure = news_of(ends, singly=singly)
    assert [token for lot in lots for token in lot] == [0, 0, 1, 1, 2]
    assert "engine has failed" in str(failure)
