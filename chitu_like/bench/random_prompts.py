"""Prompts of random token ids, of exact lengths."""

from __future__ import annotations

import random
from collections.abc import Sequence

MAX_TOKEN_ID = 100_000  # ids beyond are special tokens of some vocabularies


def random_prompt(rng: random.Random, length: int, vocab_size: int) -> list[int]:
    """`length` ids below vocab_size, drawn evenly."""
    high = min(vocab_size, MAX_TOKEN_ID)
    return rng.choices(range(high), k=length)


def random_prompts(rng: random.Random, lengths: Sequence[int], vocab_size: int) -> list[list[int]]:
    """One prompt for each length."""
    return [random_prompt(rng, length, vocab_size) for length in lengths]
