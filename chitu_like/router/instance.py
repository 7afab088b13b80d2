"""One engine as the router keeps books on it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from chitu_like.engine.messages import AddRequest, EngineInfo, EngineStats, ToFrontEnd
from chitu_like.router.policy import InstanceLoad


class Engine(Protocol):
    """What the router needs of an engine; `EngineClient` is one."""

    def add(self, request: AddRequest) -> None:
        """Hand a request over without waiting."""

    def abort(self, request_ids: Sequence[str]) -> None:
        """Let it forget these."""

    def messages(self) -> AsyncIterator[ToFrontEnd]:
        """Yield what it says."""

    async def wait_gone(self) -> None:
        """Return when it can say nothing more."""


class Instance:
    """An engine and what is known of it. Written by the router alone.

    Attributes:
        info: None until it is ready.
        stats: as of its last step.
        waiting: request id to prompt tokens, of those without a first delta.
        num_open: requests given to it and not finished.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.info: EngineInfo | None = None
        self.stats = EngineStats()
        self.waiting: dict[str, int] = {}
        self.num_open = 0
        self.num_waiting_tokens = 0

    def load(self) -> InstanceLoad:
        """What a policy looks at."""
        return InstanceLoad(
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


def sum_stats(stats: Sequence[EngineStats]) -> EngineStats:
    """Add counts up; kv_usage is the mean."""
    return EngineStats(
        num_running=sum(s.num_running for s in stats),
        num_waiting=sum(s.num_waiting for s in stats),
        kv_usage=sum(s.kv_usage for s in stats) / max(len(stats), 1),
        num_steps=sum(s.num_steps for s in stats),
        num_preemptions=sum(s.num_preemptions for s in stats),
        num_prompt_tokens=sum(s.num_prompt_tokens for s in stats),
        num_output_tokens=sum(s.num_output_tokens for s in stats),
        prefix_cache_queries=sum(s.prefix_cache_queries for s in stats),
        prefix_cache_hits=sum(s.prefix_cache_hits for s in stats),
    )
