"""Log-probabilities in the three spellings that clients know."""

from __future__ import annotations

from collections.abc import Sequence

from chitu_like.core.output import TokenLogprobs
from chitu_like.server.answers import (
    ChatLogprobs,
    LegacyLogprobs,
    PromptLogprob,
    TokenLogprob,
    TopLogprob,
)
from chitu_like.server.tokenizer import Tokenizer

LOWEST = -9999.0
"""Stands for minus infinity, which JSON cannot say."""


class LogprobSpeller:
    """Spells tokens and their log-probabilities.

    Args:
        tokenizer: None: a token's text is token_id:N.

    Attributes:
        tokenizer: as given.
    """

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self.tokenizer = tokenizer

    def chat(self, entries: Sequence[TokenLogprobs], num_top: int) -> ChatLogprobs:
        """The chat endpoint's objects, with at most `num_top` alternatives each."""
        return ChatLogprobs([self._chat_entry(entry, num_top) for entry in entries])

    def legacy(
        self, entries: Sequence[TokenLogprobs], offsets: Sequence[int], num_top: int
    ) -> LegacyLogprobs:
        """The completion endpoint's four lists; the chosen token is among the alternatives."""
        return LegacyLogprobs(
            text_offset=list(offsets),
            token_logprobs=[_finite(entry.logprob) for entry in entries],
            tokens=[self.text(entry.token_id) for entry in entries],
            top_logprobs=[self._legacy_top(entry, num_top) for entry in entries],
        )

    def prompt(self, entries: Sequence[TokenLogprobs]) -> list[dict[str, PromptLogprob] | None]:
        """The prompt_logprobs of vLLM: one table per prompt token, none for the first."""
        return [None, *map(self._prompt_entry, entries)]

    def text(self, token_id: int) -> str:
        """A token's text; bytes that are no whole characters are spelled out, as OpenAI does."""
        if self.tokenizer is None:
            return f"token_id:{token_id}"
        content = self.tokenizer.token_bytes(token_id)
        try:
            return content.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)

    def _bytes(self, token_id: int) -> list[int] | None:
        return None if self.tokenizer is None else list(self.tokenizer.token_bytes(token_id))

    def _chat_entry(self, entry: TokenLogprobs, num_top: int) -> TokenLogprob:
        return TokenLogprob(
            token=self.text(entry.token_id),
            logprob=_finite(entry.logprob),
            bytes=self._bytes(entry.token_id),
            top_logprobs=[
                TopLogprob(self.text(token_id), _finite(logprob), self._bytes(token_id))
                for token_id, logprob in entry.top[:num_top]
            ],
        )

    def _legacy_top(self, entry: TokenLogprobs, num_top: int) -> dict[str, float]:
        top = {self.text(token_id): _finite(logprob) for token_id, logprob in entry.top[:num_top]}
        return top | {self.text(entry.token_id): _finite(entry.logprob)}

    def _prompt_entry(self, entry: TokenLogprobs) -> dict[str, PromptLogprob]:
        ranked = {
            token_id: (logprob, rank) for rank, (token_id, logprob) in enumerate(entry.top, 1)
        }
        ranked[entry.token_id] = (entry.logprob, entry.rank)
        return {
            str(token_id): PromptLogprob(_finite(logprob), rank, self.text(token_id))
            for token_id, (logprob, rank) in ranked.items()
        }


def _finite(logprob: float) -> float:
    return max(logprob, LOWEST)
