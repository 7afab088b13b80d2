"""One HTTP call on its way through the engines: its requests out, its text back."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from chitu_like.core.errors import CapacityError, PeerError
from chitu_like.core.output import FinishReason, RequestDelta
from chitu_like.core.sampling_params import SamplingParams
from chitu_like.engine.messages import AddRequest
from chitu_like.router.router import Router
from chitu_like.server.answers import PromptTokensDetails, Usage
from chitu_like.server.choice import Choice, ChoiceDelta
from chitu_like.server.metrics import Metrics
from chitu_like.server.problems import ApiError, context_exceeded
from chitu_like.server.prompts import Prompt
from chitu_like.server.sampling import for_choice
from chitu_like.server.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class CallParts:
    """What a call is made of.

    Attributes:
        call_id: names its requests: call_id-0, call_id-1, ...
        prompts: at least one.
        params: for every prompt; n completions each.
        eos_token_ids: the model's.
        timeout_s: from arrival; None: no deadline.
        arrival_s: on the clock of time.monotonic.
    """

    call_id: str
    prompts: Sequence[Prompt]
    params: SamplingParams
    eos_token_ids: Sequence[int]
    timeout_s: float | None
    arrival_s: float


class Call:
    """The requests of one HTTP call, admitted when this is constructed.

    Whoever constructs it must `close` it: that frees what is still running.

    Args:
        parts: what to run.
        router: admits and carries.
        tokenizer: None: text is ''.
        metrics: told of every request's progress.

    Attributes:
        choices: one for each completion, prompt by prompt.

    Raises: what Router.submit raises; ApiError for token ids beyond the vocabulary and for more
        tokens than the context holds.
    """

    def __init__(
        self, parts: CallParts, *, router: Router, tokenizer: Tokenizer | None, metrics: Metrics
    ) -> None:
        self.parts = parts
        self._router = router
        self._check()
        requests = list(self._requests())
        prompts = [prompt for prompt in parts.prompts for _ in range(parts.params.n)]
        self._inbox = router.submit(requests)
        self.choices = [
            Choice(
                index=index,
                request_id=request.request_id,
                prompt=prompt,
                params=request.params,
                tokenizer=tokenizer,
                metrics=metrics,
                arrival_s=parts.arrival_s,
            )
            for index, (request, prompt) in enumerate(zip(requests, prompts, strict=True))
        ]
        self._by_id = {choice.request_id: choice for choice in self.choices}

    @property
    def cut(self) -> asyncio.Event:
        """Set when the call was ended from outside; see Inbox.closed."""
        return self._inbox.closed

    async def news(
        self, idle_s: float | None = None, *, singly: bool = False
    ) -> AsyncIterator[list[ChoiceDelta]]:
        """Yield all news there are, until every choice has finished; none after `idle_s` without.

        Args:
            idle_s: longest silence.
            singly: one at a time, so that `usage` is as of each.

        Raises: TimeoutError at the deadline, ApiError or PeerError when a request fails. The call
            is then to be closed.
        """
        num_growing = len(self.choices)
        while num_growing:
            deltas = await self._inbox.get(self._patience_s(idle_s))
            news: list[ChoiceDelta] = []
            for delta in deltas:
                choice = self._by_id[delta.request_id]
                if choice.finish_reason is not None:
                    continue  # what the engine computed after a stop string
                if (failure := self._failure(delta, choice)) is not None:
                    if news:
                        yield news
                    raise failure
                news.append(choice.accept(delta))
                if choice.finish_reason is not None:
                    num_growing -= 1
                    if delta.finish_reason is None:
                        self._router.abort_requests([choice.request_id])
                if singly:
                    yield news
                    news = []
            if not deltas and self._left_s() <= 0:
                raise TimeoutError
            if news or not deltas:
                yield news

    def usage(self) -> Usage:
        """Tokens so far."""
        num_prompt = sum(len(prompt.token_ids) for prompt in self.parts.prompts)
        num_output = sum(choice.num_output_tokens for choice in self.choices)
        # Siblings (n > 1) find the prompt that the first one computed; that spared the client
        # nothing, so only the first counts.
        first_of_prompts = self.choices[:: self.parts.params.n]
        num_cached = sum(choice.num_cached_tokens for choice in first_of_prompts)
        return Usage(
            prompt_tokens=num_prompt,
            completion_tokens=num_output,
            total_tokens=num_prompt + num_output,
            prompt_tokens_details=PromptTokensDetails(num_cached),
        )

    def close(self, reason: FinishReason = FinishReason.ABORT) -> None:
        """Free what still runs. May be called twice."""
        self._router.abort(self._inbox)
        for choice in self.choices:
            choice.cut_off(reason)

    def _left_s(self) -> float:
        """Seconds to the deadline."""
        if self.parts.timeout_s is None:
            return math.inf
        return self.parts.arrival_s + self.parts.timeout_s - time.monotonic()

    def _patience_s(self, idle_s: float | None) -> float | None:
        """How long to wait for news."""
        patience_s = min(self._left_s(), math.inf if idle_s is None else idle_s)
        return None if math.isinf(patience_s) else max(patience_s, 0.0)

    def _requests(self) -> list[AddRequest]:
        parts = self.parts
        return [
            AddRequest(
                request_id=f"{parts.call_id}-{prompt_index * parts.params.n + index}",
                prompt_token_ids=prompt.token_ids,
                params=for_choice(parts.params, index),
                eos_token_ids=list(parts.eos_token_ids),
                timeout_s=parts.timeout_s,
            )
            for prompt_index, prompt in enumerate(parts.prompts)
            for index in range(parts.params.n)
        ]

    def _check(self) -> None:
        """Refuse what no engine could run, before anything is expanded."""
        info = self._router.check_open()
        params = self.parts.params
        for prompt in self.parts.prompts:
            num_prompt = len(prompt.token_ids)
            if num_prompt + (params.max_tokens or 1) > info.max_seq_len:
                raise context_exceeded(
                    f"{num_prompt} prompt tokens and {params.max_tokens or 1} of output",
                    info.max_seq_len,
                    "max_tokens" if num_prompt < info.max_seq_len else "prompt",
                )
            check_token_ids("prompt", prompt.token_ids, info.vocab_size)
        check_token_ids("logit_bias", list(params.logit_bias), info.vocab_size)
        check_token_ids("stop_token_ids", params.stop_token_ids, info.vocab_size)

    def _failure(self, delta: RequestDelta, choice: Choice) -> Exception | None:
        """What the call fails with, where this delta says that a request did."""
        if delta.finish_reason is FinishReason.ERROR:
            if choice.num_output_tokens:  # an engine that refuses a request gives it no token
                return PeerError("the engine has failed; this request cannot be finished")
            return ApiError(400, delta.error or "the engine refused the request", code="refused")
        if delta.finish_reason is FinishReason.ABORT:
            if self._left_s() <= 0:
                return TimeoutError()
            return CapacityError("the engine gave the request up")
        return None


def check_token_ids(field: str, token_ids: Sequence[int], vocab_size: int) -> None:
    """Raise ApiError 400 for a token that the model does not have."""
    if token_ids and max(token_ids) >= vocab_size:
        raise ApiError(
            400,
            f"{field}: token id {max(token_ids)} is outside the vocabulary of {vocab_size}",
            param=field,
            code="invalid_value",
        )
