"""One completion while it grows: deltas of token ids in, deltas of text out."""

from __future__ import annotations

import logging
import time

import msgspec

from chitu_like.core.output import FinishReason, RequestDelta, RequestTimes, TokenLogprobs
from chitu_like.core.sampling_params import SamplingParams
from chitu_like.server.choice_text import ChoiceText
from chitu_like.server.metrics import FinishedRequest, Metrics
from chitu_like.server.prompts import Prompt
from chitu_like.server.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


class ChoiceDelta(msgspec.Struct, frozen=True, kw_only=True):
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


class Choice:
    """Follows one request of a call.

    Args:
        index: see ChoiceDelta.
        request_id: the engine's name for it.
        prompt: what it continues.
        params: its own, with n=1.
        tokenizer: None: text is ''.
        metrics: told of tokens and of the end.
        arrival_s: when the call came, on the clock of time.monotonic.

    Attributes:
        finish_reason: None while it grows.
        num_cached_tokens: prompt tokens that the prefix cache spared.
    """

    def __init__(
        self,
        *,
        index: int,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams,
        tokenizer: Tokenizer | None,
        metrics: Metrics,
        arrival_s: float,
    ) -> None:
        self.index = index
        self.request_id = request_id
        self.prompt = prompt
        self.finish_reason: FinishReason | None = None
        self.num_cached_tokens = 0
        self._text = ChoiceText(tokenizer, prompt.token_ids, params)
        self._metrics = metrics
        self._arrival_s = arrival_s
        self._first_token_s: float | None = None
        self._last_token_s = arrival_s

    @property
    def num_output_tokens(self) -> int:
        """Tokens that count, up to the stop string where one ended it."""
        return self._text.num_tokens

    def accept(self, delta: RequestDelta) -> ChoiceDelta:
        """Take news of the request; after a stop string `finish_reason` is set and it is over."""
        self.num_cached_tokens = max(self.num_cached_tokens, delta.num_cached_tokens)
        piece = self._text.take(delta)
        if piece.token_ids:
            self._note_tokens()
        if self._text.finish_reason is not None:
            self._finish(self._text.finish_reason, delta.times)
        return ChoiceDelta(
            index=self.index,
            text=piece.text,
            token_ids=piece.token_ids,
            logprobs=piece.logprobs,
            text_offsets=piece.text_offsets,
            prompt_logprobs=delta.prompt_logprobs,
            finish_reason=self.finish_reason.value if self.finish_reason else None,
            stop_reason=self._text.stop_reason,
        )

    def cut_off(self, reason: FinishReason) -> None:
        """Note that it ended without an answer: the client left, the deadline passed, a failure."""
        if self.finish_reason is None:
            self._finish(reason, None)

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
