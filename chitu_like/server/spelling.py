"""How a vocabulary spells bytes: a piece of text in tokenizer.json against the bytes it stands for.

Two spellings cover the model families we serve. Byte-level BPE (GPT-2, Llama 3, Qwen, GLM) has one
printable character for each byte. SentencePiece (Llama 1 and 2, Mistral) writes a space as U+2581
and a byte that no piece covers as <0xNN>.
"""

from __future__ import annotations

import re
from typing import Protocol

import tokenizers

from chitu_like.core.errors import UnsupportedError

SPACE_MARK = "\u2581"
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Spelling(Protocol):
    """What one vocabulary piece says, in bytes.

    Attributes:
        drops_leading_space: the encoder put a space before the text, so decoding takes one away.
    """

    drops_leading_space: bool

    def to_bytes(self, piece: str) -> bytes:
        """Bytes that `piece` stands for; need not be valid UTF-8 alone."""
        ...


def _printable_bytes() -> str:
    """One printable character for each byte value, in the order of the values.

    GPT-2's table: printable Latin-1 stands for itself, the 68 others move up to U+0100 and after.
    """
    kept = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    moved = iter(range(0x100, 0x200))
    return "".join(chr(value if value in kept else next(moved)) for value in range(256))


BYTE_CHARACTERS = _printable_bytes()
_BYTE_OF = {character: value for value, character in enumerate(BYTE_CHARACTERS)}


class ByteLevelSpelling:
    """One character a byte."""

    drops_leading_space = False

    def to_bytes(self, piece: str) -> bytes:
        """Bytes of `piece`; a piece with a foreign character stands for itself."""
        try:
            return bytes([_BYTE_OF[character] for character in piece])
        except KeyError:
            return piece.encode()


class SentencePieceSpelling:
    """U+2581 for a space, <0xNN> for a lone byte, anything else for itself."""

    def __init__(self, *, drops_leading_space: bool) -> None:
        """Remember whether decoding drops the space that encoding put in front."""
        self.drops_leading_space = drops_leading_space

    def to_bytes(self, piece: str) -> bytes:
        """Bytes of `piece`."""
        if byte := _BYTE_PIECE.fullmatch(piece):
            return bytes([int(byte[1], 16)])
        return piece.replace(SPACE_MARK, " ").encode()


def spelling_of(backend: tokenizers.Tokenizer) -> Spelling:
    """Find the spelling by asking the decoder, so that its make-up in tokenizer.json is free.

    Raises: UnsupportedError if the decoder is neither of the two kinds.
    """
    decoder = backend.decoder
    if decoder is not None:
        if decoder.decode(["a", f"{BYTE_CHARACTERS[0x20]}b"]) == "a b":
            return ByteLevelSpelling()
        if decoder.decode(["a", f"{SPACE_MARK}b"]) == "a b":
            drops = decoder.decode([f"{SPACE_MARK}a"]) == "a"
            return SentencePieceSpelling(drops_leading_space=drops)
    raise UnsupportedError(
        "the tokenizer's decoder is neither byte-level nor SentencePiece: use a tokenizer.json "
        "whose decoder is ByteLevel, Metaspace or ByteFallback (models.tokenizer_path)"
    )
