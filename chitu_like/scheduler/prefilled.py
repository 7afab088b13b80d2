"""A request whose prompt one instance has computed and whose answer another one is to decode."""

from __future__ import annotations

import math

import msgspec

from chitu_like.core.request import Request
from chitu_like.core.sampling_params import SamplingParams


class Prefilled(msgspec.Struct, frozen=True):
    """What the decoding instance is told, besides the keys and values themselves.

    Attributes:
        request_id, prompt_token_ids, params, eos_token_ids, seed: as in Request.
        output_token_ids: the answer so far, one token unless it was preempted with it under way. Their
            keys and values do not cross.
        max_output_tokens: of the whole answer.
        block_ids: blocks of the prefill instance, in order, that hold the prompt's keys and values.
        num_cached_tokens: prompt tokens that the prefix cache spared.
        queue_s, prefill_s: how long it waited and was computed.
        timeout_s: seconds from then after which the answer is worthless; None: no deadline.
    """

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    eos_token_ids: list[int]
    seed: int
    output_token_ids: list[int]
    max_output_tokens: int
    block_ids: list[int]
    num_cached_tokens: int
    queue_s: float
    prefill_s: float
    timeout_s: float | None

    @classmethod
    def of(cls, request: Request, block_ids: list[int], now_s: float) -> Prefilled:
        """What a prefill instance says of a request that has its first token."""
        arrival_s, started_s = request.arrival_s, request.first_scheduled_s
        if started_s is None:
            raise RuntimeError(f"{request.request_id} has a token and never ran")
        is_timed = request.deadline_s < math.inf
        return cls(
            request_id=request.request_id,
            prompt_token_ids=request.prompt_token_ids,
            params=request.params,
            eos_token_ids=sorted(request.eos_token_ids),
            seed=request.seed,
            output_token_ids=list(request.output_token_ids),
            max_output_tokens=request.max_output_tokens + request.num_tokens_elsewhere,
            block_ids=list(block_ids),
            num_cached_tokens=request.num_cached_tokens,
            queue_s=started_s - arrival_s,
            prefill_s=now_s - started_s,
            timeout_s=request.deadline_s - now_s if is_timed else None,
        )

    def to_request(self, now_s: float) -> Request:
        """The decoding instance's record of it, as if it had been here from the beginning."""
        request = Request(
            request_id=self.request_id,
            prompt_token_ids=self.prompt_token_ids,
            params=self.params,
            max_output_tokens=self.max_output_tokens,
            seed=self.seed,
            eos_token_ids=frozenset(self.eos_token_ids),
            arrival_s=now_s - self.prefill_s - self.queue_s,
            deadline_s=math.inf if self.timeout_s is None else now_s + self.timeout_s,
        )
        request.output_token_ids = list(self.output_token_ids)
        request.num_computed = request.num_prompt_tokens
        request.num_cached_tokens = self.num_cached_tokens
        request.num_prompt_logprobs = request.num_prompt_tokens - 1  # all were handed out
        request.first_scheduled_s = now_s - self.prefill_s
        request.first_token_s = request.last_scheduled_s = now_s
        return request
