"""What every conversion of an older tokenizer file yields, and what the conversions share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import tokenizers
from tokenizers import Regex, pre_tokenizers

MAX_PIECE_LENGTH = 1024
"""Splitting a piece in all ways costs the square of its length; real vocabularies stay under 300."""

CONTRACTIONS_AND_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
PUNCTUATION_AND_SPACE = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True, kw_only=True)
class ConvertedTokenizer:
    """A converted vocabulary, and what its own file says where tokenizer_config.json is silent."""

    backend: tokenizers.Tokenizer
    bos_token: str | None = None
    eos_tokens: tuple[str, ...] = ()
    adds_bos: bool = False
    chat_template: str | None = None


def rebuild_merges(ordered: Iterable[str], ids: Mapping[str, int]) -> list[tuple[str, str]]:
    """Merges that a ranked vocabulary implies: each piece from any two pieces that make it.

    Args:
        ordered: pieces, the one to merge first in front.
        ids: every piece that may be a half.
    """
    merges: list[tuple[str, str]] = []
    for piece in ordered:
        if len(piece) > MAX_PIECE_LENGTH:
            raise ValueError(f"a piece is {len(piece)} characters long, over {MAX_PIECE_LENGTH}")
        halves = [
            (piece[:cut], piece[cut:])
            for cut in range(1, len(piece))
            if piece[:cut] in ids and piece[cut:] in ids
        ]
        merges.extend(sorted(halves, key=lambda pair: (ids[pair[0]], ids[pair[1]])))
    return merges


def byte_level_words(pattern: str, *, add_prefix_space: bool) -> pre_tokenizers.PreTokenizer:
    """Cut words by `pattern`, then spell each byte as one character."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=False),
        ]
    )
