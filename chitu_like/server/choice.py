"""One completion while it grows: deltas of token ids in, deltas of text out."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from chitu_like.core.output import FinishReason, RequestDelta, RequestTimes, TokenLogprobs
from chitu_like.core.sampling_params import SamplingParams
from chitu_like.server.detokenizer import IncrementalDetokenizer
from chitu_like.server.metrics import FinishedRequest, Metrics
from chitu_like.server.prompts import Prompt
from chitu_like.server.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ChoiceDelta:
    """What a step added to a completion.

    Attributes:
        index: which completion of the call: prompt index * n + number of the completion.
        text: what is now certain; may be '' while tokens went on.
        token_ids: new tokens, a stop or end-of-text token included.
        logprobs: one entry per new token if asked for, else empty.
        text_offsets: per new token, where its text begins in the completion, in characters.
        prompt_logprobs: new entries, from prompt token 1 on.
        finish_reason: "stop" or "length" on the last delta.
        stop_reason: the stop string or stop token id that ended it, on the last delta.
    """

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs]
    text_offsets: list[int]
    prompt_logprobs: list[TokenLogprobs]
    finish_reason: str | None = None
    stop_reason: str | int | None = None


class TextMaker(Protocol):
    """What turns tokens into text; IncrementalDetokenizer is one."""

    stop_reason: str | None
    text_offsets: list[int]

    def push(self, token_ids: Sequence[int]) -> str:
        """Take tokens, return certain text."""

    def finish(self) -> str:
        """Return what was held back."""


class NoText:
    """Stands where the model has no tokenizer: every text is ''."""

    def __init__(self) -> None:
        self.stop_reason: str | None = None
        self.text_offsets: list[int] = []

    def push(self, token_ids: Sequence[int]) -> str:
        """Count the tokens."""
        self.text_offsets += [0] * len(token_ids)
        return ""

    def finish(self) -> str:
        """Nothing was held back."""
        return ""


class Choice:
    """Follows one request of a call.

    Args:
        index: see ChoiceDelta.
        request_id: the engine's name for it.
        prompt: what it continues.
        params: its own, with n=1.
        eos_token_ids: end-of-text tokens, which are no reason worth naming.
        tokenizer: None: text is ''.
        metrics: told of tokens and of the end.
        arrival_s: when the call came, on the clock of time.monotonic.

    Attributes:
        finish_reason: None while it grows.
        num_output_tokens: up to the stop string, where one ended it.
    """

    def __init__(
        self,
        *,
        index: int,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams,
        eos_token_ids: Sequence[int],
        tokenizer: Tokenizer | None,
        metrics: Metrics,
        arrival_s: float,
    ) -> None:
        self.index = index
        self.request_id = request_id
        self.prompt = prompt
        self.finish_reason: FinishReason | None = None
        self.num_output_tokens = 0
        self.num_cached_tokens = 0
        self._num_characters = 0
        self._eos_token_ids = frozenset(eos_token_ids)
        self._keeps_stop = params.include_stop_str_in_output
        self._text: TextMaker = (
            NoText() if tokenizer is None else _detokenizer(tokenizer, prompt, params)
        )
        self._metrics = metrics
        self._arrival_s = arrival_s
        self._first_token_s: float | None = None
        self._last_token_s = arrival_s

    def accept(self, delta: RequestDelta) -> ChoiceDelta:
        """Take news of the request; after a stop string `finish_reason` is set and it is over."""
        self.num_cached_tokens = max(self.num_cached_tokens, delta.num_cached_tokens)
        num_before = self.num_output_tokens
        text, token_ids = self._push(delta)
        if token_ids:
            self._note_tokens()
        stop_reason: str | int | None = self._text.stop_reason
        if stop_reason is not None:
            self._finish(FinishReason.STOP, delta.times)
        elif delta.finish_reason is not None:
            stop_reason = (
                None if delta.stop_token_id in self._eos_token_ids else delta.stop_token_id
            )
            self._finish(delta.finish_reason, delta.times)
        num_new = len(token_ids)
        return ChoiceDelta(
            index=self.index,
            text=text,
            token_ids=token_ids,
            logprobs=delta.logprobs[:num_new],
            text_offsets=self._text.text_offsets[num_before : num_before + num_new],
            prompt_logprobs=delta.prompt_logprobs,
            finish_reason=self.finish_reason.value if self.finish_reason else None,
            stop_reason=stop_reason,
        )

    def cut_off(self, reason: FinishReason) -> None:
        """Note that it ended without an answer: the client left, the deadline passed, a failure."""
        if self.finish_reason is None:
            self._finish(reason, None)

    def _push(self, delta: RequestDelta) -> tuple[str, list[int]]:
        """New text, and the new tokens that count."""
        token_ids = delta.token_ids
        hidden = delta.stop_token_id is not None and not self._keeps_stop
        text = self._text.push(token_ids[:-1] if hidden else token_ids)
        if delta.finish_reason is not None:
            text += self._text.finish()
        offsets = self._text.text_offsets
        if self._text.stop_reason is not None:
            token_ids = token_ids[: len(offsets) - self.num_output_tokens]
        elif hidden and token_ids:
            offsets.append(self._num_characters + len(text))
        self.num_output_tokens += len(token_ids)
        self._num_characters += len(text)
        return text, token_ids

    def _note_tokens(self) -> None:
        now_s = time.monotonic()
        if self._first_token_s is None:
            self._first_token_s = now_s
            self._metrics.first_token(now_s - self._arrival_s)
        else:
            self._metrics.next_tokens(now_s - self._last_token_s)
        self._last_token_s = now_s

    def _finish(self, reason: FinishReason, times: RequestTimes | None) -> None:
        self.finish_reason = reason
        record = self._record(reason, times)
        self._metrics.finished(record)
        logger.info("%s", record.log_line())

    def _record(self, reason: FinishReason, times: RequestTimes | None) -> FinishedRequest:
        first_s, num_after = self._first_token_s, self.num_output_tokens - 1
        return FinishedRequest(
            request_id=self.request_id,
            num_prompt_tokens=len(self.prompt.token_ids),
            num_output_tokens=self.num_output_tokens,
            num_cached_tokens=self.num_cached_tokens,
            finish_reason=reason.value,
            ttft_s=None if first_s is None else first_s - self._arrival_s,
            e2e_s=time.monotonic() - self._arrival_s,
            tpot_s=(self._last_token_s - first_s) / num_after
            if first_s is not None and num_after > 0
            else None,
            times=times,
        )


def _detokenizer(
    tokenizer: Tokenizer, prompt: Prompt, params: SamplingParams
) -> IncrementalDetokenizer:
    return IncrementalDetokenizer(
        tokenizer,
        prompt.token_ids,
        stop=params.stop,
        include_stop_str_in_output=params.include_stop_str_in_output,
        skip_special_tokens=params.skip_special_tokens,
        min_tokens=params.min_tokens,
    )
