"""Small real tokenizers made on the spot, so that tests need no shared data, and where that is."""

from __future__ import annotations

import base64
import io
import itertools
import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

CHECKOUT = Path(__file__).resolve().parents[1]
DATA = CHECKOUT.parent / "shared" / "data"
"""Real tokenizers and templates with golden files, where a neighbour of the checkout has them."""

TEXT = (
    "Once upon a time there was a little fox. The fox said hello to the bear, and the bear said "
    "hello to the fox! 2 + 2 = 4, isn't it? Größe, naïve café, 你好世界, привет мир, こんにちは. "
) * 4
SPECIAL = ("<|bos|>", "<|end|>", "<|user|>")


def byte_level_backend(vocab_size: int = 400) -> tokenizers.Tokenizer:
    """Byte-level BPE as in GPT-2; its special tokens have the ids 0, 1, 2."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(SPECIAL),
        show_progress=False,
    )
    backend.train_from_iterator([TEXT], trainer)
    return backend


def write_byte_level(folder: Path, **config: object) -> Path:
    """A folder with tokenizer.json and tokenizer_config.json."""
    byte_level_backend().save(str(folder / "tokenizer.json"))
    write_config(folder, **{"bos_token": "<|bos|>", "eos_token": "<|end|>", **config})
    return folder


def write_vocab_and_merges(folder: Path, **config: object) -> Path:
    """The same vocabulary as vocab.json and merges.txt."""
    byte_level_backend().model.save(str(folder))
    added = {
        index: {"content": content, "special": True, "normalized": False}
        for index, content in enumerate(SPECIAL)
    }
    named = {"bos_token": "<|bos|>", "eos_token": "<|end|>"}
    write_config(folder, **{"added_tokens_decoder": added, **named, **config})
    return folder


def shared_folder(*parts: str) -> Path:
    """A folder of the shared data; skips the test where that is absent."""
    folder = DATA.joinpath(*parts)
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    return folder


def sentencepiece_content(model_type: str, **options: object) -> bytes:
    """A tokenizer.model trained by the sentencepiece library."""
    import sentencepiece

    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.split(". ")),
        model_writer=content,
        model_type=model_type,
        minloglevel=2,
        **{
            "vocab_size": 360,
            "byte_fallback": True,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "character_coverage": 0.98,
            "num_threads": 1,
            "hard_vocab_limit": False,
            **options,
        },
    )
    return content.getvalue()


def write_sentencepiece(folder: Path, model_type: str = "bpe", **options: object) -> Path:
    """A folder with tokenizer.model alone."""
    (folder / "tokenizer.model").write_bytes(sentencepiece_content(model_type, **options))
    return folder


def llama3_ranks() -> list[bytes]:
    """As many tokens as Llama 3 has: all bytes, all pairs, and the first triples of letters."""
    single = [bytes([value]) for value in range(256)]
    pairs = [bytes(pair) for pair in itertools.product(range(256), repeat=2)]
    triples = (bytes(triple) for triple in itertools.product(range(0x20, 0x7F), repeat=3))
    return [*single, *pairs, *itertools.islice(triples, 128_000 - len(single) - len(pairs))]


def write_llama3(folder: Path) -> Path:
    """A folder with original/tokenizer.model of tiktoken ranks."""
    (folder / "original").mkdir()
    with (folder / "original" / "tokenizer.model").open("wb") as file:
        for rank, token in enumerate(llama3_ranks()):
            file.write(base64.b64encode(token) + b" %d\n" % rank)
    return folder


def write_config(folder: Path, **config: object) -> None:
    """Write tokenizer_config.json."""
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
