"""Llama 3's tokenizer.model, tiktoken ranks in base64, as a tokenizers.Tokenizer."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import tokenizers
from tokenizers import decoders, models

from chitu_like.core.errors import UnsupportedError
from chitu_like.server.converted_tokenizer import (
    CONTRACTIONS_AND_WORDS,
    PUNCTUATION_AND_SPACE,
    ConvertedTokenizer,
    byte_level_words,
    rebuild_merges,
)
from chitu_like.server.spelling import BYTE_CHARACTERS

LLAMA3_PATTERN = rf"{CONTRACTIONS_AND_WORDS}|\p{{N}}{{1,3}}|{PUNCTUATION_AND_SPACE}"
LLAMA3_NUM_RANKS = 128_000
_LLAMA3_NAMED = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    4: "<|finetune_right_pad_id|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    8: "<|eom_id|>",
    9: "<|eot_id|>",
    10: "<|python_tag|>",
}
LLAMA3_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}"
    "<|end_header_id|>\n\n{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def parse_ranks(content: bytes) -> list[bytes]:
    """The tokens of a tiktoken file, each line a token in base64 and its rank, by rank.

    Raises: ValueError if a line is neither or the ranks are not 0, 1, 2, ...
    """
    tokens: list[bytes] = []
    for line in content.splitlines():
        encoded, _, rank = line.partition(b" ")
        if not rank.isdigit() or int(rank) != len(tokens):
            raise ValueError(f"line {len(tokens) + 1} is not a base64 token and rank {len(tokens)}")
        tokens.append(base64.b64decode(encoded, validate=True))
    return tokens


def from_llama3_ranks(tokens: list[bytes]) -> ConvertedTokenizer:
    """Llama 3's byte-level BPE with its 256 special tokens, named as Llama 3.1 names them.

    Raises: UnsupportedError for another number of ranks: the special tokens of other models differ.
    """
    if len(tokens) != LLAMA3_NUM_RANKS:
        raise UnsupportedError(
            f"{len(tokens)} ranks, Llama 3 has {LLAMA3_NUM_RANKS}: bring this model's tokenizer.json"
        )
    backend = from_ranks(tokens, LLAMA3_PATTERN)
    backend.add_special_tokens(list(llama3_special_tokens()))
    return ConvertedTokenizer(
        backend=backend,
        bos_token="<|begin_of_text|>",
        eos_tokens=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
        adds_bos=True,
        chat_template=LLAMA3_CHAT_TEMPLATE,
    )


def from_ranks(tokens: list[bytes], pattern: str) -> tokenizers.Tokenizer:
    """Byte-level BPE from tokens by rank; words are cut by `pattern` first."""
    pieces = ["".join(map(BYTE_CHARACTERS.__getitem__, token)) for token in tokens]
    vocab = {piece: rank for rank, piece in enumerate(pieces)}
    if len(vocab) != len(tokens):
        raise ValueError("two ranks have the same token")
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=rebuild_merges(pieces, vocab), ignore_merges=True)
    )
    backend.pre_tokenizer = byte_level_words(pattern, add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def llama3_special_tokens() -> Iterator[str]:
    """The 256 names, by id after the ranks."""
    reserved = 0
    for index in range(256):
        if index in _LLAMA3_NAMED:
            yield _LLAMA3_NAMED[index]
        else:
            yield f"<|reserved_special_token_{reserved}|>"
            reserved += 1
