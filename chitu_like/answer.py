"""Answers of `LLM` while they grow, from the engine's deltas to RequestOutput."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from chitu_like.core.output import (
    CompletionOutput,
    FinishReason,
    Logprob,
    RequestDelta,
    RequestOutput,
    TokenLogprobs,
)
from chitu_like.core.sampling_params import SamplingParams
from chitu_like.server.choice_text import ChoiceText
from chitu_like.server.tokenizer import Tokenizer

Prompt: TypeAlias = str | Sequence[int]


class Answer:
    """What is known so far of the answer to one prompt.

    Attributes:
        request_id: its completions are called request_id-0, request_id-1, ...
        prompt: as it came.
        params: as they came; n completions.
        prompt_token_ids: once it is encoded.
        choices: request id of the engine -> completion.
        refusal: why the prompt was not even sent.
    """

    def __init__(self, request_id: str, prompt: Prompt, params: SamplingParams) -> None:
        self.request_id = request_id
        self.prompt = prompt
        self.params = params
        self.prompt_token_ids: list[int] = []
        self.choices: dict[str, GrowingChoice] = {}
        self.refusal: str | None = None

    @property
    def error(self) -> str | None:
        """Why there is no answer; None where there is, or will be."""
        errors = [choice.error for choice in self.choices.values() if choice.error is not None]
        return self.refusal or (errors[0] if errors else None)

    @property
    def is_done(self) -> bool:
        """Whether every completion ended, or the prompt was refused."""
        done = [choice.finish_reason is not None for choice in self.choices.values()]
        return self.error is not None or (bool(done) and all(done))

    def news(self) -> list[CompletionOutput]:
        """What each completion has that was not handed out yet."""
        pieces = [choice.piece() for choice in self.choices.values()]
        return [piece for piece in pieces if piece is not None]

    def output(self) -> RequestOutput:
        """The whole answer."""
        choices = list(self.choices.values())
        first = choices[0] if choices else None
        last = first.last if first else None
        return RequestOutput(
            request_id=self.request_id,
            prompt=self.prompt if isinstance(self.prompt, str) else None,
            prompt_token_ids=self.prompt_token_ids,
            outputs=[] if self.error else [choice.output() for choice in choices],
            prompt_logprobs=first.prompt_logprobs() if first else None,
            num_cached_tokens=last.num_cached_tokens if last else 0,
            times=last.times if last else None,
            error=self.error,
        )


class GrowingChoice:
    """One completion of an answer.

    Args:
        index: 0 to n - 1.
        params: its own, with n=1.
        prompt_token_ids: what it continues.
        tokenizer: None: text is ''.

    Attributes:
        error: why it failed.
        last: the last delta taken.
    """

    def __init__(
        self,
        index: int,
        params: SamplingParams,
        prompt_token_ids: Sequence[int],
        tokenizer: Tokenizer | None,
    ) -> None:
        self.index = index
        self.params = params
        self.error: str | None = None
        self.last: RequestDelta | None = None
        self._tokenizer = tokenizer
        self._following = ChoiceText(tokenizer, prompt_token_ids, params)
        self._texts: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprobs] = []
        self._prompt_logprobs: list[TokenLogprobs] = []
        self._num_texts_shown = 0
        self._num_tokens_shown = 0
        self._was_end_shown = False

    @property
    def finish_reason(self) -> FinishReason | None:
        """None while it grows."""
        return self._following.finish_reason

    def take(self, delta: RequestDelta) -> None:
        """Add what a step brought; what comes behind the end is dropped."""
        if self.finish_reason is not None:
            return
        piece = self._following.take(delta)
        self.last = delta
        self.error = delta.error
        self._texts.append(piece.text)
        self._token_ids += piece.token_ids
        self._logprobs += piece.logprobs
        self._prompt_logprobs += delta.prompt_logprobs

    def piece(self) -> CompletionOutput | None:
        """What was not handed out yet; None where nothing is new."""
        text = "".join(self._texts[self._num_texts_shown :])
        token_ids = self._token_ids[self._num_tokens_shown :]
        is_end = self.finish_reason is not None and not self._was_end_shown
        if not token_ids and not text and not is_end:
            return None
        logprobs = self._logprobs[self._num_tokens_shown :]
        self._num_texts_shown, self._num_tokens_shown = len(self._texts), len(self._token_ids)
        self._was_end_shown = self.finish_reason is not None
        return self._output(text, token_ids, logprobs)

    def output(self) -> CompletionOutput:
        """The completion as it stands."""
        return self._output("".join(self._texts), list(self._token_ids), self._logprobs)

    def prompt_logprobs(self) -> list[dict[int, Logprob] | None] | None:
        """One entry a prompt token, None for the first; None unless asked for."""
        if self.params.prompt_logprobs is None:
            return None
        return [None, *(self._readable(entry) for entry in self._prompt_logprobs)]

    def _output(
        self, text: str, token_ids: list[int], logprobs: list[TokenLogprobs]
    ) -> CompletionOutput:
        wants = self.params.logprobs is not None
        return CompletionOutput(
            index=self.index,
            text=text,
            token_ids=token_ids,
            logprobs=[self._readable(entry) for entry in logprobs] if wants else None,
            cumulative_logprob=sum(entry.logprob for entry in self._logprobs) if wants else None,
            finish_reason=self.finish_reason,
            stop_reason=self._following.stop_reason,
        )

    def _readable(self, entry: TokenLogprobs) -> dict[int, Logprob]:
        top = [(token_id, value, rank) for rank, (token_id, value) in enumerate(entry.top, 1)]
        return {
            token_id: Logprob(logprob=value, rank=rank, decoded_token=self._text_of(token_id))
            for token_id, value, rank in (*top, (entry.token_id, entry.logprob, entry.rank))
        }

    def _text_of(self, token_id: int) -> str:
        return self._tokenizer.token_text(token_id) if self._tokenizer else ""
