"""Token ids to text while they arrive: whole characters only, and nothing that a stop string eats.

The engine knows tokens, only this knows text; so stop strings are found here.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from chitu_like.server.tokenizer import Tokenizer

_LONGEST_CHARACTER_BYTES = 4


class StopMatcher:
    """Finds the first stop string to be completed, one character at a time.

    Knuth, Morris and Pratt (1977) for each stop string: constant time a character on average, and
    the same answer however the text is cut into tokens. Where two end at one character, the longer.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = sorted(filter(None, stops), key=len, reverse=True)
        self._borders = [_borders(stop) for stop in self._stops]
        self._matched = [0] * len(self._stops)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to look for."""
        return not self._stops

    @property
    def num_held(self) -> int:
        """Characters at the end of the text that may be the beginning of a stop string."""
        return max(self._matched, default=0)

    def feed(self, character: str) -> str | None:
        """Take one character; return the stop string it completes, if any."""
        completed = None
        for index, (stop, borders) in enumerate(zip(self._stops, self._borders, strict=True)):
            matched = self._matched[index]
            while matched and stop[matched] != character:
                matched = borders[matched - 1]
            matched += stop[matched] == character
            if matched == len(stop):
                completed = completed or stop
                matched = borders[-1]
            self._matched[index] = matched
        return completed


def _borders(stop: str) -> list[int]:
    """For each prefix of `stop`, the length of its longest proper prefix that also ends it."""
    borders = [0] * len(stop)
    matched = 0
    for index in range(1, len(stop)):
        while matched and stop[matched] != stop[index]:
            matched = borders[matched - 1]
        matched += stop[matched] == stop[index]
        borders[index] = matched
    return borders


class IncrementalDetokenizer:
    """The text of one choice. Linear time in all: each token's bytes are looked up once.

    The text continues the prompt: joined to the prompt's text it is the text of all tokens, so a
    space that the first output token carries is kept, and a character that the prompt's last
    tokens only begin is completed here, whole.

    Args:
        tokenizer: spells the tokens.
        prompt_token_ids: the prompt, or enough of its end; only the last tokens are looked at.
        stop: the text ends before the first of these to be completed.
        include_stop_str_in_output: it ends after it instead.
        skip_special_tokens: special tokens make no text.
        min_tokens: a stop string completed by an earlier token than this one is plain text.

    Attributes:
        stop_reason: the stop string met, or None. From then on `push` and `finish` return ''.
        num_tokens: tokens pushed, up to and with the one that completed the stop string; what a
            caller pushed after it is not counted.
        text_offsets: for each of those tokens, where its text begins, in characters (for legacy
            completions logprobs). Tokens that share a character share its offset, and tokens of a
            stop string that is cut away point at or past the end of the text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_token_ids: Sequence[int] = (),
        *,
        stop: Sequence[str] = (),
        include_stop_str_in_output: bool = False,
        skip_special_tokens: bool = True,
        min_tokens: int = 0,
    ) -> None:
        self._tokenizer = tokenizer
        self._include_stop = include_stop_str_in_output
        self._skip_special = skip_special_tokens
        self._min_tokens = min_tokens
        self._matcher = StopMatcher(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        prompt_end = self._last_bytes(prompt_token_ids)
        self._decoder.decode(prompt_end)  # leaves the bytes of an unfinished character inside
        self._drops_space = tokenizer.drops_leading_space and not prompt_end
        self._held = ""  # whole characters, held back while a stop string may begin in them
        self._emitted: list[str] = []
        self._num_characters = 0
        self.stop_reason: str | None = None
        self.text_offsets: list[int] = []

    @property
    def text(self) -> str:
        """All text returned so far."""
        if len(self._emitted) > 1:
            self._emitted = ["".join(self._emitted)]
        return self._emitted[0] if self._emitted else ""

    @property
    def num_tokens(self) -> int:
        """Tokens that belong to the text, for usage counts."""
        return len(self.text_offsets)

    def push(self, token_ids: Sequence[int]) -> str:
        """Take the next tokens; return the text that is now certain."""
        pieces = []
        for token_id in token_ids:
            if self.stop_reason is not None:
                break
            self.text_offsets.append(self._num_characters)
            pieces.append(self._take(self._decoder.decode(self._bytes_of(token_id))))
        return self._emit("".join(pieces))

    def finish(self) -> str:
        """Return what was held back: the output ended without a stop string."""
        if self.stop_reason is not None:
            return ""
        rest = self._take(self._decoder.decode(b"", final=True))
        if self.stop_reason is None:
            rest, self._held = rest + self._held, ""
        return self._emit(rest)

    def _bytes_of(self, token_id: int) -> bytes:
        content = self._rendered(token_id)
        if self._drops_space and content:
            self._drops_space = False
            return content.removeprefix(b" ")
        return content

    def _rendered(self, token_id: int) -> bytes:
        if self._skip_special and self._tokenizer.is_special(token_id):
            return b""
        return self._tokenizer.token_bytes(token_id)

    def _last_bytes(self, token_ids: Sequence[int]) -> bytes:
        """Enough bytes of the prompt's end to know the character it may have broken off in."""
        content = b""
        for token_id in reversed(token_ids):
            content = self._rendered(token_id) + content
            if len(content) >= _LONGEST_CHARACTER_BYTES:
                break
        return content

    def _take(self, characters: str) -> str:
        """Add whole characters; return those, held ones included, that no stop string can eat."""
        self._num_characters += len(characters)
        if self._matcher.is_empty:
            return characters
        for index, character in enumerate(characters):
            stop = self._matcher.feed(character)
            if stop is not None and self.num_tokens >= self._min_tokens:
                return self._cut(self._held + characters[: index + 1], stop)
        characters = self._held + characters
        certain = len(characters) - self._matcher.num_held
        self._held = characters[certain:]
        return characters[:certain]

    def _cut(self, characters: str, stop: str) -> str:
        self.stop_reason = stop
        self._held = ""
        return characters if self._include_stop else characters.removesuffix(stop)

    def _emit(self, characters: str) -> str:
        if characters:
            self._emitted.append(characters)
        return characters
