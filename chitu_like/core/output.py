"""What comes back: token ids from a step, deltas from an engine, whole answers for a client."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import msgspec


class FinishReason(str, Enum):
    """Why a request ended. The first two are OpenAI's words."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Log-probabilities at one position, after penalties and bias but before temperature.

    Attributes:
        token_id: the token that stands there.
        logprob: its natural log-probability.
        rank: 1 for the most probable token of the vocabulary.
        top: (token id, logprob) of the most probable tokens, best first.
    """

    token_id: int
    logprob: float
    rank: int
    top: list[tuple[int, float]]


class StepOutput(msgspec.Struct, frozen=True, array_like=True):
    """What one executed batch gave.

    Attributes:
        step_id: that of the ScheduledBatch.
        token_ids: one for each request of the batch whose `samples` is true, in batch order.
        logprobs: as long as token_ids where any request asked for them, else empty.
        prompt_logprobs: (index in the batch, entries), one entry for each prompt position whose
            successor this chunk predicted: position p gives the entry of prompt token p + 1.
    """

    step_id: int
    token_ids: list[int]
    logprobs: list[TokenLogprobs | None] = []
    prompt_logprobs: list[tuple[int, list[TokenLogprobs]]] = []


class RequestTimes(msgspec.Struct, frozen=True, array_like=True):
    """Seconds a finished request spent waiting for its first step, in prefill and in decode."""

    queue_s: float
    prefill_s: float
    decode_s: float


class RequestDelta(msgspec.Struct, frozen=True, array_like=True):
    """News of one request after a step: what an engine sends to the front end.

    Attributes:
        request_id: whose.
        token_ids: new output tokens. A stop or end-of-text token is part of them.
        logprobs: one entry for each new token if asked for, else empty.
        prompt_logprobs: new entries, from prompt token 1 on; empty if not asked for.
        finish_reason: set on the last delta.
        stop_token_id: the token that ended the request, where one did.
        num_cached_tokens: prompt tokens found in the prefix cache; known from the first delta on.
        times: on the last delta.
        error: one sentence for the client where finish_reason is ERROR.
    """

    request_id: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] = []
    prompt_logprobs: list[TokenLogprobs] = []
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    num_cached_tokens: int = 0
    times: RequestTimes | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Logprob:
    """One token's log-probability as `LLM` reports it."""

    logprob: float
    rank: int
    decoded_token: str


@dataclass(frozen=True, kw_only=True)
class CompletionOutput:
    """One completion of a prompt.

    Attributes:
        index: 0 to n - 1.
        text: the detokenised output, stop string removed; '' without a tokenizer.
        token_ids: output tokens, an end-of-text token included.
        logprobs: per output position {token_id: Logprob}; None unless asked for.
        cumulative_logprob: sum over the chosen tokens; None unless logprobs were asked for.
        finish_reason: None while streaming.
        stop_reason: the stop string or token id that ended it; None for end-of-text and length.
    """

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[dict[int, Logprob]] | None = None
    cumulative_logprob: float | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None


@dataclass(frozen=True, kw_only=True)
class RequestOutput:
    """The answer to one prompt, in the order the prompts came.

    Attributes:
        request_id: the engine's name for it.
        prompt: its text where it came as text.
        prompt_token_ids: what was run.
        outputs: n completions; empty where `error` is set.
        prompt_logprobs: None for the first token, then {token_id: Logprob}; None unless asked for.
        num_cached_tokens: prompt tokens that the prefix cache spared.
        times: where the time went; of the first completion where n > 1.
        error: why this one was refused or failed; the others are not touched.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    num_cached_tokens: int = 0
    times: RequestTimes | None = None
    error: str | None = None
