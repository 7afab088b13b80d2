"""The protobuf of a SentencePiece tokenizer.model, read without a protobuf library.

Only the fields that decide encoding are kept (sentencepiece_model.proto of google/sentencepiece).
Every length is checked against the bytes that are left before it is used.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10

Field = tuple[int, int | bytes]
"""Field number, and an integer (any scalar, floats as their bits) or the bytes of a submessage."""


class PieceType(IntEnum):
    """What a piece is for."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class ModelType(IntEnum):
    """How a text is cut into pieces."""

    UNIGRAM = 1
    BPE = 2
    WORD = 3
    CHAR = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """One entry of the vocabulary; its id is its place in the file."""

    text: str
    score: float
    type: PieceType


@dataclass(frozen=True, kw_only=True)
class SentencePieceModel:
    """A tokenizer.model.

    Attributes:
        pieces: in the order of their ids.
        bos_id, eos_id: -1 when the model has none.
        charsmap: precompiled normalisation rules; empty for none.
    """

    pieces: tuple[Piece, ...]
    model_type: ModelType
    bos_id: int
    eos_id: int
    charsmap: bytes
    adds_dummy_prefix: bool
    removes_extra_whitespaces: bool
    escapes_whitespaces: bool
    whitespace_is_suffix: bool

    @classmethod
    def parse(cls, content: bytes) -> SentencePieceModel:
        """Read the file's content.

        Raises: ValueError if it is cut off or is no SentencePiece model.
        """
        pieces: list[Piece] = []
        trainer: dict[int, int | bytes] = {}
        normalizer: dict[int, int | bytes] = {}
        for number, value in read_fields(content):
            if number == 1:
                pieces.append(_parse_piece(_submessage(value)))
            elif number == 2:
                trainer.update(read_fields(_submessage(value)))
            elif number == 3:
                normalizer.update(read_fields(_submessage(value)))
        if not pieces:
            raise ValueError("it holds no piece")
        return cls(
            pieces=tuple(pieces),
            model_type=ModelType(_int32(trainer.get(3, ModelType.UNIGRAM))),
            bos_id=_int32(trainer.get(41, 1)),
            eos_id=_int32(trainer.get(42, 2)),
            charsmap=_submessage(normalizer.get(2, b"")),
            adds_dummy_prefix=bool(normalizer.get(3, True)),
            removes_extra_whitespaces=bool(normalizer.get(4, True)),
            escapes_whitespaces=bool(normalizer.get(5, True)),
            whitespace_is_suffix=bool(trainer.get(24, False)),
        )


def read_fields(content: bytes) -> Iterator[Field]:
    """The fields of one message, in file order.

    Raises: ValueError if a field reaches past the end or has an unknown wire type.
    """
    position = 0
    while position < len(content):
        key, position = _read_varint(content, position)
        number, wire_type = key >> 3, key & 7
        if wire_type == _VARINT:
            value, position = _read_varint(content, position)
            yield number, value
            continue
        size = {_FIXED64: 8, _FIXED32: 4}.get(wire_type)
        if wire_type == _LENGTH:
            size, position = _read_varint(content, position)
        if size is None or size > len(content) - position:
            raise ValueError(f"field {number} at byte {position} is damaged")
        chunk = content[position : position + size]
        position += size
        yield number, chunk if wire_type == _LENGTH else int.from_bytes(chunk, "little")


def _read_varint(content: bytes, position: int) -> tuple[int, int]:
    """A base-128 number at `position`, and the position after it."""
    value = 0
    for index, byte in enumerate(content[position : position + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, position + index + 1
    raise ValueError(f"the number at byte {position} does not end")


def _parse_piece(content: bytes) -> Piece:
    fields = dict(read_fields(content))
    bits = fields.get(2, 0)
    if not isinstance(bits, int) or bits >= 1 << 32:
        raise ValueError("a piece's score is not a number")
    return Piece(
        text=_submessage(fields.get(1, b"")).decode(),
        score=struct.unpack("<f", bits.to_bytes(4, "little"))[0],
        type=PieceType(_int32(fields.get(3, PieceType.NORMAL))),
    )


def _submessage(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number stands where text or a message belongs")
    return value


def _int32(value: int | bytes) -> int:
    """Undo the 64-bit two's complement in which protobuf writes a negative int32."""
    if isinstance(value, bytes):
        raise ValueError("text stands where a number belongs")
    return value - (1 << 64) if value >= 1 << 63 else value
