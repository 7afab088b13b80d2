"""One engine as the router keeps books on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import msgspec

from chitu_like.engine.messages import AddRequest, EngineInfo, EngineStats, ToFrontEnd
from chitu_like.router.policy import InstanceLoad


class Engine(Protocol):
    """What the router needs of an engine; `EngineClient` is one."""

    def add(self, request: AddRequest) -> None:
        """Hand a request over without waiting."""

    def abort(self, request_ids: Sequence[str]) -> None:
        """Let it forget these."""

    def shutdown(self) -> None:
        """Ask it to stop."""

    def messages(self) -> AsyncIterator[ToFrontEnd]:
        """Yield what it says."""

    async def wait_gone(self) -> None:
        """Return when it can say nothing more."""

    def close(self) -> None:
        """Neither listen nor speak to it any more. May be called twice."""


class Books:
    """What an instance was given and has not finished.

    Attributes:
        number: its place among the instances, for good.
        info: None until it is ready.
        waiting: request id to prompt tokens, of those without a first delta.
        num_open: requests given to it and not finished.
        num_waiting_tokens: prompt tokens of those that wait.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.info: EngineInfo | None = None
        self.waiting: dict[str, int] = {}
        self.num_open = 0
        self.num_waiting_tokens = 0

    def load(self) -> InstanceLoad:
        """What a policy looks at."""
        return InstanceLoad(
            instance=self.number,
            num_open=self.num_open,
            num_waiting_tokens=self.num_waiting_tokens,
            max_reqs=self.info.max_reqs if self.info is not None else 1,
        )

    def opened(self, request: AddRequest) -> None:
        """Count a request as given to this instance."""
        num_tokens = len(request.prompt_token_ids)
        self.waiting[request.request_id] = num_tokens
        self.num_waiting_tokens += num_tokens
        self.num_open += 1

    def answered(self, request_id: str) -> None:
        """Note that a request has come through its prompt."""
        self.num_waiting_tokens -= self.waiting.pop(request_id, 0)

    def closed(self, request_id: str) -> None:
        """Forget a request."""
        self.answered(request_id)
        self.num_open -= 1


class Instance(Books):
    """An engine and what is known of it. Written by the router alone.

    Attributes:
        stats: as of its last step.
        last_progress_s: when it last reported a step, or work began while it was idle.
        failure: why it is lost, or None.
        lost: set when it is.
    """

    def __init__(self, number: int, engine: Engine) -> None:
        super().__init__(number)
        self.engine = engine
        self.stats = EngineStats()
        self.last_progress_s = 0.0
        self.failure: str | None = None
        self.lost = asyncio.Event()

    @property
    def is_up(self) -> bool:
        """Whether it can be given requests, now or once it is ready."""
        return self.failure is None

    def seconds_without_progress(self, now_s: float) -> float:
        """How long its open requests have seen no step; 0 with none open."""
        return now_s - self.last_progress_s if self.num_open else 0.0

    def fail(self, reason: str) -> None:
        """Take it out of service: what it counted stays, what it did has ended."""
        self.failure = reason
        self.stats = msgspec.structs.replace(self.stats, num_running=0, num_waiting=0, kv_usage=0.0)
        self.lost.set()

    def given(self, request: AddRequest, now_s: float) -> None:
        """Count a request as given to this instance now."""
        if not self.num_open:
            self.last_progress_s = now_s
        self.opened(request)


def sum_stats(instances: Sequence[Instance]) -> EngineStats:
    """Add counts up, those of lost instances too; kv_usage is the mean of the others."""
    stats = [instance.stats for instance in instances]
    num_up = sum(instance.is_up for instance in instances)
    return EngineStats(
        num_running=sum(s.num_running for s in stats),
        num_waiting=sum(s.num_waiting for s in stats),
        kv_usage=sum(s.kv_usage for s in stats) / max(num_up, 1),
        num_steps=sum(s.num_steps for s in stats),
        num_preemptions=sum(s.num_preemptions for s in stats),
        num_prompt_tokens=sum(s.num_prompt_tokens for s in stats),
        num_output_tokens=sum(s.num_output_tokens for s in stats),
        prefix_cache_queries=sum(s.prefix_cache_queries for s in stats),
        prefix_cache_hits=sum(s.prefix_cache_hits for s in stats),
    )
