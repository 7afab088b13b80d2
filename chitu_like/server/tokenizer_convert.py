"""Older tokenizer files -> tokenizers.Tokenizer, for folders without a tokenizer.json.

vocab.json + merges.txt (GPT-2, OPT, Qwen), SentencePiece's tokenizer.model (Llama 1 and 2, Mistral)
and Llama 3's tokenizer.model of tiktoken ranks, also inside original/.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from chitu_like.core.errors import CheckpointError, UnsupportedError
from chitu_like.server.converted_tokenizer import (
    CONTRACTIONS_AND_WORDS,
    PUNCTUATION_AND_SPACE,
    ConvertedTokenizer,
    byte_level_words,
)
from chitu_like.server.llama3_convert import from_llama3_ranks, parse_ranks
from chitu_like.server.sentencepiece_convert import from_sentencepiece
from chitu_like.server.sentencepiece_model import SentencePieceModel
from chitu_like.server.tokenizer_config import TokenizerConfig, read_bytes, read_json, read_text

QWEN2_PATTERN = rf"{CONTRACTIONS_AND_WORDS}|\p{{N}}|{PUNCTUATION_AND_SPACE}"


def convert(files: tuple[Path, ...], config: TokenizerConfig) -> ConvertedTokenizer:
    """Convert an older tokenizer, its files as tokenizer_files.py finds them.

    Raises: CheckpointError naming the damaged file; UnsupportedError for an unknown kind.
    """
    if files[0].name == "vocab.json":
        vocab, merges = files
        return from_vocab_and_merges(vocab, merges, config)
    return from_model_file(files[0], config)


def from_vocab_and_merges(vocab: Path, merges: Path, config: TokenizerConfig) -> ConvertedTokenizer:
    """Byte-level BPE with the word pattern of Qwen2 or GPT-2, as tokenizer_config.json says."""
    ids = read_json(vocab, dict[str, int]) or {}
    try:
        backend = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=_read_merges(merges)))
    except CheckpointError:
        raise
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointError(f"{vocab} and {merges.name} do not fit together: {error}") from error
    prefix = bool(config.add_prefix_space)
    if _is_qwen(vocab.parent, config):
        backend.normalizer = normalizers.NFC()
        backend.pre_tokenizer = byte_level_words(QWEN2_PATTERN, add_prefix_space=prefix)
    else:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    backend.decoder = decoders.ByteLevel()
    return ConvertedTokenizer(backend=backend)


def _read_merges(path: Path) -> list[tuple[str, str]]:
    """The lines of merges.txt; only a line feed ends a line, pieces may hold other separators."""
    merges: list[tuple[str, str]] = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        left, space, right = line.rstrip("\r").partition(" ")
        if not line or line.startswith("#version"):
            continue
        if not (left and space and right) or " " in right:
            raise CheckpointError(f"{path} line {number} is not two pieces with a space between")
        merges.append((left, right))
    return merges


def from_model_file(path: Path, config: TokenizerConfig) -> ConvertedTokenizer:
    """tokenizer.model of either kind, told apart by the first byte.

    A SentencePiece file begins with the tag of protobuf field 1 (a line feed), a tiktoken file
    with base64.
    """
    content = read_bytes(path)
    try:
        if content.startswith(b"\n"):
            return from_sentencepiece(SentencePieceModel.parse(content), config)
        return from_llama3_ranks(parse_ranks(content))
    except UnsupportedError as error:
        raise UnsupportedError(f"{path}: {error}") from error
    except Exception as error:  # ours are ValueErrors, the library raises nothing narrower
        raise CheckpointError(f"{path} is broken: {error}") from error


class _ModelType(msgspec.Struct, frozen=True):
    """The one field of config.json that tells Qwen from GPT-2."""

    model_type: str = ""


def _is_qwen(folder: Path, config: TokenizerConfig) -> bool:
    if config.tokenizer_class and config.tokenizer_class != "PreTrainedTokenizerFast":
        return config.tokenizer_class.startswith("Qwen")
    stored = read_json(folder / "config.json", _ModelType) or _ModelType()
    return stored.model_type.startswith("qwen")
