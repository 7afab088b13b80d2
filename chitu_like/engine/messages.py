"""What front end and engine say to each other: msgspec structs as msgpack over ZeroMQ, never pickle.

The front end speaks first with Hello; the engine drops everything before a Hello with the right
secret. Then AddRequest and AbortRequests flow one way; Ready, one StepMessage a step, and Failed
the other way.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from chitu_like.core.output import RequestDelta
from chitu_like.core.sampling_params import SamplingParams


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """The front end's first words; `secret` was handed to it when it was started."""

    secret: str


class AddRequest(msgspec.Struct, frozen=True, tag="add"):
    """One prompt for one completion (n is expanded by the sender).

    Attributes:
        request_id: unique among open requests of the sender.
        prompt_token_ids: at least one.
        params: checked when decoded.
        eos_token_ids: the model's end-of-text tokens.
        timeout_s: seconds from now after which the answer is worthless; None: no deadline.
    """

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    eos_token_ids: list[int] = []
    timeout_s: float | None = None


class AbortRequests(msgspec.Struct, frozen=True, tag="abort"):
    """Forget these; unknown ids are ignored (they may just have finished)."""

    request_ids: list[str]


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """Stop the engine and its ranks; open requests are dropped."""


class EngineInfo(msgspec.Struct, frozen=True):
    """What an engine can hold; the front end bounds requests by it.

    Attributes:
        max_seq_len: prompt + output tokens of one request.
        max_reqs: requests running at once.
        num_blocks, block_size: the KV pool.
        vocab_size: token ids are below this.
    """

    max_seq_len: int
    max_reqs: int
    num_blocks: int
    block_size: int
    vocab_size: int


class EngineStats(msgspec.Struct, frozen=True, array_like=True):
    """Gauges and running totals after a step.

    Attributes:
        num_running, num_waiting: requests; preempted ones count as waiting.
        kv_usage: share of KV blocks held by requests, 0 to 1.
        num_steps, num_preemptions, num_prompt_tokens, num_output_tokens: totals since start.
        prefix_cache_queries, prefix_cache_hits: prompt tokens looked up and found, totals.
    """

    num_running: int = 0
    num_waiting: int = 0
    kv_usage: float = 0.0
    num_steps: int = 0
    num_preemptions: int = 0
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The model is loaded; requests are welcome."""

    info: EngineInfo


class StepMessage(msgspec.Struct, frozen=True, tag="step"):
    """Everything one step (or one refusal) changed, in one message."""

    deltas: list[RequestDelta]
    stats: EngineStats


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The engine cannot go on: its open requests have ended, nothing follows.

    Attributes:
        reason: one sentence fit for an operator's log.
    """

    reason: str


ToEngine: TypeAlias = Hello | AddRequest | AbortRequests | Shutdown
ToFrontEnd: TypeAlias = Ready | StepMessage | Failed
