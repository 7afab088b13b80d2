"""What the tokens of one completion say: the same for HTTP and for `LLM`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from chitu_like.core.output import FinishReason, RequestDelta, TokenLogprobs
from chitu_like.core.sampling_params import SamplingParams
from chitu_like.server.detokenizer import IncrementalDetokenizer
from chitu_like.server.tokenizer import Tokenizer


class TextPiece(msgspec.Struct, frozen=True, kw_only=True):
    """What a step added to a completion.

    Attributes:
        text: what is now certain; may be '' while tokens went on.
        token_ids: new tokens, a stop or end-of-text token included, none behind a stop string.
        logprobs: one entry per new token if asked for, else empty.
        text_offsets: per new token, where its text begins in the completion, in characters.
    """

    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs]
    text_offsets: list[int]


class ChoiceText:
    """Follows one completion.

    Args:
        tokenizer: None: every text is ''.
        prompt_token_ids: what it continues.
        params: its own, with n=1.

    Attributes:
        finish_reason: None while it grows.
        stop_reason: the stop string or stop token that ended it; None for end-of-text and length.
        num_tokens: tokens that belong to it, up to the stop string where one ended it.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
    ) -> None:
        self.finish_reason: FinishReason | None = None
        self.stop_reason: str | int | None = None
        self.num_tokens = 0
        self._num_characters = 0
        self._keeps_stop = params.include_stop_str_in_output
        self._maker: _TextMaker = (
            _NoText()
            if tokenizer is None
            else IncrementalDetokenizer(
                tokenizer,
                prompt_token_ids,
                stop=params.stop,
                include_stop_str_in_output=params.include_stop_str_in_output,
                skip_special_tokens=params.skip_special_tokens,
                min_tokens=params.min_tokens,
            )
        )

    def take(self, delta: RequestDelta) -> TextPiece:
        """Add what a step brought. Nothing may follow once `finish_reason` is set."""
        token_ids = delta.token_ids
        # The token that ended the request is no text, unless the user wants to see it all.
        is_hidden = delta.finish_reason is FinishReason.STOP and not self._keeps_stop
        text = self._maker.push(token_ids[:-1] if is_hidden else token_ids)
        if delta.finish_reason is not None:
            text += self._maker.finish()
        offsets = self._maker.text_offsets
        if self._maker.stop_reason is not None:
            self.finish_reason, self.stop_reason = FinishReason.STOP, self._maker.stop_reason
            token_ids = token_ids[: len(offsets) - self.num_tokens]
        else:
            self.finish_reason, self.stop_reason = delta.finish_reason, delta.stop_token_id
            if is_hidden and token_ids:
                offsets.append(self._num_characters + len(text))
        num_before = self.num_tokens
        self.num_tokens += len(token_ids)
        self._num_characters += len(text)
        return TextPiece(
            text=text,
            token_ids=token_ids,
            logprobs=delta.logprobs[: len(token_ids)],
            text_offsets=offsets[num_before : self.num_tokens],
        )


class _TextMaker(Protocol):
    """What turns tokens into text; IncrementalDetokenizer is one."""

    stop_reason: str | None
    text_offsets: list[int]

    def push(self, token_ids: Sequence[int]) -> str: ...

    def finish(self) -> str: ...


class _NoText:
    """Stands where the model has no tokenizer."""

    def __init__(self) -> None:
        self.stop_reason: str | None = None
        self.text_offsets: list[int] = []

    def push(self, token_ids: Sequence[int]) -> str:
        self.text_offsets += [0] * len(token_ids)
        return ""

    def finish(self) -> str:
        return ""
