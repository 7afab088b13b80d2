import functools
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import (
    SPECIAL,
    TEXT,
    byte_level_backend,
    llama3_ranks,
    sentencepiece_content,
    shared_folder,
    write_byte_level,
    write_config,
    write_llama3,
    write_sentencepiece,
    write_vocab_and_merges,
)
from tokenizers import decoders, processors

from chitu_like.core.errors import CheckpointError, ChituError, RequestError, UnsupportedError
from chitu_like.server.llama3_convert import LLAMA3_PATTERN
from chitu_like.server.sentencepiece_convert import from_sentencepiece
from chitu_like.server.sentencepiece_model import SentencePieceModel
from chitu_like.server.tokenizer import Tokenizer
from chitu_like.server.tokenizer_config import TokenizerConfig

FAMILIES = ("qwen3", "minimind", "mistral_v1")
# Any character but lone surrogates, which no byte sequence spells.
UNICODE = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
WORDS = st.text(st.sampled_from("the fox 42!\n\tß你é🦊"), max_size=60)
TEXTS = st.one_of(UNICODE, WORDS)


class Processor(Protocol):
    """What the tests use of sentencepiece.SentencePieceProcessor."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...


def golden(folder: Path, name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(write_byte_level(tmp_path_factory.mktemp("byte_level")))


@pytest.fixture(scope="module")
def llama3(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(write_llama3(tmp_path_factory.mktemp("llama3")))


@pytest.fixture(scope="module")
def mistral() -> tuple[Tokenizer, Processor]:
    """Both readings of Mistral's tokenizer.model."""
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = shared_folder("tokenizers", "mistral_v1")
    return load_both(sentencepiece, folder)


@functools.cache
def byte_level_backend_once() -> tokenizers.Tokenizer:
    return byte_level_backend()


@functools.cache
def sentencepiece_content_once() -> bytes:
    pytest.importorskip("sentencepiece")
    return sentencepiece_content("bpe")


def load_error(folder: Path) -> str | None:
    try:
        Tokenizer.load(folder)
    except (CheckpointError, UnsupportedError) as error:
        return str(error)
    return None


def load_both(sentencepiece: object, folder: Path) -> tuple[Tokenizer, Processor]:
    model = SentencePieceModel.parse((folder / "tokenizer.model").read_bytes())
    config = TokenizerConfig()
    ours = Tokenizer(from_sentencepiece(model, config), config)
    return ours, sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))


# -- real families against their golden files


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_and_text_equal_the_golden_file(family: str) -> None:
    folder = shared_folder("tokenizers", family)
    tokenizer = Tokenizer.load(folder)
    rows = golden(folder, "golden_encode.jsonl")
    assert len(rows) == 62
    for row in rows:
        ids = tokenizer.encode(row["text"], add_special_tokens=False)
        assert ids == row["ids"]
        assert tokenizer.decode(ids, skip_special_tokens=False) == row["decoded"]


@pytest.mark.parametrize("family", FAMILIES)
def test_rendered_chats_have_the_golden_ids(family: str) -> None:
    folder = shared_folder("tokenizers", family)
    tokenizer = Tokenizer.load(folder)
    for row in golden(folder, "golden_chat.jsonl"):
        assert tokenizer.encode(row["text"], add_special_tokens=False) == row["ids"]


@pytest.mark.parametrize("family", FAMILIES)
def test_special_tokens_are_those_of_transformers(family: str) -> None:
    transformers = pytest.importorskip("transformers")
    folder = shared_folder("tokenizers", family)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = Tokenizer.load(folder)
    assert ours.bos_token_id == theirs.bos_token_id
    assert ours.eos_token_ids == (theirs.eos_token_id,)
    assert ours.vocab_size == len(theirs)
    for text in ("Hello world", "", "a <|im_end|> b</s>c"):
        assert ours.encode(text) == theirs.encode(text)
    for token_id in (*range(50), *range(ours.vocab_size - 40, ours.vocab_size)):
        skipped = theirs.decode([token_id], skip_special_tokens=True)
        kept = theirs.decode([token_id], skip_special_tokens=False)
        assert ours.is_special(token_id) == (skipped != kept), token_id


def test_mistrals_sentencepiece_file_equals_the_golden_file(tmp_path: Path) -> None:
    folder = shared_folder("tokenizers", "mistral_v1")
    shutil.copy(folder / "tokenizer.model", tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    for row in golden(folder, "golden_encode.jsonl"):
        assert tokenizer.encode(row["text"], add_special_tokens=False) == row["ids"]
        assert tokenizer.decode(row["ids"]) == row["decoded"]
    assert tokenizer.bos_token_id == 1
    assert tokenizer.eos_token_ids == (2,)
    assert tokenizer.encode("Hello")[0] == 1


@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
def test_mistrals_sentencepiece_file_equals_the_sentencepiece_library(
    mistral: tuple[Tokenizer, Processor], text: str
) -> None:
    ours, theirs = mistral
    assert ours.encode(text, add_special_tokens=False) == theirs.encode(text)


# -- older files, made here


@pytest.mark.parametrize(
    ("model_type", "options"),
    [
        ("bpe", {}),
        ("bpe", {"byte_fallback": False}),
        ("bpe", {"add_dummy_prefix": False}),
        ("bpe", {"user_defined_symbols": ["fox", "[call]"]}),
        ("bpe", {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True}),
        ("unigram", {}),
        ("unigram", {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True}),
    ],
)
def test_a_sentencepiece_file_equals_the_sentencepiece_library(
    tmp_path: Path, model_type: str, options: dict[str, object]
) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    ours, theirs = load_both(sentencepiece, write_sentencepiece(tmp_path, model_type, **options))
    alphabet = "the fox  42!\n\tß你é🦊xyzQsaidubear[call]\ufb01\u2581"
    random.seed(7)
    for _ in range(500):
        text = "".join(random.choices(alphabet, k=random.randrange(40)))
        ids = ours.encode(text, add_special_tokens=False)
        assert ids == theirs.encode(text), text
        if options.get("byte_fallback", True):
            assert ours.decode(ids) == theirs.decode(ids)


def test_vocab_and_merges_equal_the_tokenizer_json(tmp_path: Path, byte_level: Tokenizer) -> None:
    converted = Tokenizer.load(write_vocab_and_merges(tmp_path))
    ids = converted.encode(TEXT + "<|end|>")
    assert ids == byte_level.encode(TEXT + "<|end|>")
    assert ids[-1] == 1
    assert converted.decode(ids) == TEXT


@pytest.mark.parametrize("spelled_in", ["tokenizer_config.json", "config.json"])
def test_qwen_folders_split_digits_one_by_one(tmp_path: Path, spelled_in: str) -> None:
    named = {"tokenizer_class": "Qwen2Tokenizer"} if spelled_in == "tokenizer_config.json" else {}
    write_vocab_and_merges(tmp_path, **named)
    if not named:
        (tmp_path / "config.json").write_text('{"model_type": "qwen3", "hidden_size": 64}')
    vocab = json.loads((tmp_path / "vocab.json").read_text())
    (tmp_path / "vocab.json").write_text(json.dumps({**vocab, "12": len(vocab)}))
    with (tmp_path / "merges.txt").open("a") as file:
        file.write("1 2\n")
    tokenizer = Tokenizer.load(tmp_path)
    assert [tokenizer.token_text(i) for i in tokenizer.encode("12")] == ["1", "2"]
    assert tokenizer.encode("e\u0301") == tokenizer.encode("é")


def test_llama3_ranks_equal_tiktoken(llama3: Tokenizer) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    ranks = {token: rank for rank, token in enumerate(llama3_ranks())}
    theirs = tiktoken.Encoding(
        "t", pat_str=LLAMA3_PATTERN, mergeable_ranks=ranks, special_tokens={}
    )
    random.seed(5)
    for _ in range(300):
        text = "".join(random.choices("the fox 42!\n\r\tß你é🦊isn't WE'RE 12345", k=40))
        ids = llama3.encode(text, add_special_tokens=False)
        assert ids == theirs.encode_ordinary(text)
        assert llama3.decode(ids) == text


def test_llama3_ranks_bring_their_special_tokens(llama3: Tokenizer) -> None:
    assert llama3.bos_token_id == 128000
    assert llama3.eos_token_ids == (128001, 128008, 128009)
    assert llama3.vocab_size == 128256
    assert llama3.encode("<|start_header_id|>a")[:2] == [128000, 128006]
    assert llama3.token_text(128255) == "<|reserved_special_token_247|>"
    assert llama3.chat_template is not None


# -- what tokenizer_config.json says


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, "{}"),
        ({"add_bos_token": True}, "<|bos|>{}"),
        ({"add_eos_token": True}, "{}<|end|>"),
        ({"add_bos_token": True, "add_eos_token": True}, "<|bos|>{}<|end|>"),
        ({"add_bos_token": True, "bos_token": None}, "{}"),
    ],
)
def test_begin_and_end_tokens_follow_tokenizer_config(
    tmp_path: Path, flags: dict[str, object], expected: str
) -> None:
    tokenizer = Tokenizer.load(write_vocab_and_merges(tmp_path, **flags))
    text = tokenizer.decode(tokenizer.encode("a fox"), skip_special_tokens=False)
    assert text == expected.format("a fox")
    without = tokenizer.encode("a fox", add_special_tokens=False)
    assert tokenizer.decode(without, skip_special_tokens=False) == "a fox"


@pytest.mark.parametrize(
    ("write", "config"),
    [
        (write_vocab_and_merges, {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True}),
        (write_vocab_and_merges, {"tokenizer_class": "Qwen2Tokenizer"}),
        (write_byte_level, {"add_bos_token": True, "add_eos_token": True}),
        (write_byte_level, {"additional_special_tokens": ["<x>"]}),
        (write_byte_level, {"added_tokens_decoder": {"1": {"content": "<|end|>"}}}),
    ],
)
def test_a_folder_gives_the_tokens_that_transformers_gives(
    tmp_path: Path, write: Callable[..., Path], config: dict[str, object]
) -> None:
    transformers = pytest.importorskip("transformers")
    write(tmp_path, **{"tokenizer_class": "PreTrainedTokenizerFast", **config})
    ours = Tokenizer.load(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    words = ["the", " fox", "  ", "\n", "42", "!", "ß", "你", "🦊", "e\u0301", "<|end|>", "<x>"]
    random.seed(3)
    for _ in range(200):
        text = "".join(random.choices(words, k=random.randrange(12)))
        ids = ours.encode(text)
        assert ids == theirs.encode(text)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_the_template_inside_tokenizer_json_wins_over_the_flags(tmp_path: Path) -> None:
    write_byte_level(tmp_path, add_bos_token=False)
    backend = byte_level_backend()
    backend.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", 0)]
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.load(tmp_path).encode("a")[0] == 0


def test_add_bos_token_false_wins_over_the_sentencepiece_default(tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece")
    write_sentencepiece(tmp_path)
    assert Tokenizer.load(tmp_path).encode("a")[0] == 1
    write_config(tmp_path, add_bos_token=False)
    assert Tokenizer.load(tmp_path).encode("a")[0] != 1


def test_added_tokens_extend_the_vocabulary(tmp_path: Path) -> None:
    size = byte_level_backend().get_vocab_size()
    added = {
        str(size): {"content": "<think>", "special": False},
        str(size + 1): {"content": "<pad>", "special": True},
    }
    tokenizer = Tokenizer.load(write_byte_level(tmp_path, added_tokens_decoder=added))
    assert tokenizer.encode("a<think><pad>")[1:] == [size, size + 1]
    assert tokenizer.decode([size, size + 1]) == "<think>"
    assert tokenizer.vocab_size == size + 2


def test_special_tokens_map_fills_what_the_config_leaves_open(tmp_path: Path) -> None:
    byte_level_backend().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": {"content": "<|end|>"}}')
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.eos_token_ids == (1,)
    assert tokenizer.special_tokens == {"eos_token": "<|end|>"}


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ("plain", "plain"),
        ([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}], "d"),
        ([{"name": "other", "template": "only"}], "only"),
        (None, None),
    ],
)
def test_the_default_chat_template_is_found(
    tmp_path: Path, stored: object, expected: str | None
) -> None:
    write_byte_level(tmp_path, chat_template=stored)
    assert Tokenizer.load(tmp_path).chat_template == expected


def test_a_template_file_wins_over_the_config(tmp_path: Path) -> None:
    write_byte_level(tmp_path, chat_template="config")
    (tmp_path / "chat_template.json").write_text('{"chat_template": "json"}')
    assert Tokenizer.load(tmp_path).chat_template == "json"
    (tmp_path / "chat_template.jinja").write_text("jinja")
    assert Tokenizer.load(tmp_path).chat_template == "jinja"


def test_truncation_and_padding_of_tokenizer_json_are_off(tmp_path: Path) -> None:
    write_byte_level(tmp_path)
    backend = byte_level_backend()
    backend.enable_truncation(4)
    backend.enable_padding(length=9)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert len(tokenizer.encode("a")) == 1


# -- tokens and bytes


@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
def test_a_byte_level_text_survives_the_round_trip(byte_level: Tokenizer, text: str) -> None:
    ids = byte_level.encode(text)
    assert b"".join(map(byte_level.token_bytes, ids)) == text.encode()
    assert byte_level.decode(ids) == text
    assert byte_level.fewest_tokens(text) <= len(ids)


@settings(max_examples=150, deadline=None)
@given(ids=st.lists(st.integers(0, 410), max_size=40), skip=st.booleans())
def test_random_byte_level_ids_decode_as_the_library_decodes(
    byte_level: Tokenizer, ids: list[int], skip: bool
) -> None:
    expected = byte_level_backend_once().decode(ids, skip_special_tokens=skip)
    assert byte_level.decode(ids, skip_special_tokens=skip) == expected


def test_a_token_alone_has_text_even_where_it_is_half_a_character(byte_level: Tokenizer) -> None:
    (*_, last) = byte_level.encode("🦊")
    assert byte_level.token_text(last) == "\ufffd"
    assert byte_level.token_bytes(last) == b"\x8a"
    assert byte_level.token_bytes(0) == b"<|bos|>"


@pytest.mark.parametrize("token_id", [-1, 400_000, 2**40])
def test_an_id_without_a_piece_is_empty(byte_level: Tokenizer, token_id: int) -> None:
    assert byte_level.token_bytes(token_id) == b""
    assert byte_level.decode([token_id]) == ""
    assert not byte_level.is_special(token_id)


def test_sentencepiece_bytes_are_exact(tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece")
    tokenizer = Tokenizer.load(write_sentencepiece(tmp_path))
    ids = tokenizer.encode("the 🦊", add_special_tokens=False)
    assert b"".join(map(tokenizer.token_bytes, ids)) == " the 🦊".encode()
    assert tokenizer.decode(ids) == "the 🦊"
    assert tokenizer.decode(ids[:-1]) == "the \ufffd"


def test_special_tokens_are_skipped_or_kept(byte_level: Tokenizer) -> None:
    ids = byte_level.encode(f"a{SPECIAL[2]}b")
    assert byte_level.decode(ids) == "ab"
    assert byte_level.decode(ids, skip_special_tokens=False) == f"a{SPECIAL[2]}b"


def test_a_lone_surrogate_is_the_requests_mistake(byte_level: Tokenizer) -> None:
    with pytest.raises(RequestError, match="surrogate"):
        byte_level.encode("a\ud800b")


# -- broken folders


def test_an_empty_folder_is_refused_with_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json.*tokenizer_path"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{"),
        ("tokenizer.json", '{"model": 3}'),
        ("tokenizer_config.json", "["),
        ("tokenizer_config.json", '{"bos_token": 7}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"0": {"special": true}}}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"9": {"content": "<|bos|>"}}}'),
        ("special_tokens_map.json", "\udcff"),
        ("added_tokens.json", '{"<x>": "one"}'),
        ("chat_template.json", "nothing"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: str) -> None:
    write_byte_level(tmp_path)
    (tmp_path / name).write_text(content, errors="surrogateescape")
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")) as caught:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("vocab.json", "[]"),
        ("vocab.json", '{"a": -1}'),
        ("vocab.json", '{"a": 0}'),
        ("merges.txt", "#version: 0.2\na b c\n"),
        ("merges.txt", "alone\n"),
        ("merges.txt", "unknown pieces\n"),
    ],
)
def test_broken_vocab_and_merges_are_named(tmp_path: Path, name: str, content: str) -> None:
    write_vocab_and_merges(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        Tokenizer.load(tmp_path)


def test_a_decoder_of_another_kind_is_unsupported(tmp_path: Path) -> None:
    backend = byte_level_backend()
    backend.decoder = decoders.WordPiece()
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UnsupportedError, match="byte-level"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"IQ== 0\nIg== 2\n", b"IQ== 0\n", b"not base64! 0\n"])
def test_broken_ranks_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ChituError, match=r"tokenizer\.model"):
        Tokenizer.load(tmp_path)


def test_a_cut_sentencepiece_file_is_refused_or_read_to_its_end(tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece")
    content = sentencepiece_content("bpe")
    for size in range(0, len(content), 37):
        (tmp_path / "tokenizer.model").write_bytes(content[:size])
        message = load_error(tmp_path)
        assert message is None or "tokenizer.model" in message


@pytest.fixture(scope="module")
def sentencepiece_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sentencepiece")
    return write_sentencepiece(tmp_path_factory.mktemp("damaged"))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_sentencepiece_file_raises_nothing_unexpected(
    sentencepiece_folder: Path, data: st.DataObject
) -> None:
    content = bytearray(sentencepiece_content_once())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (sentencepiece_folder / "tokenizer.model").write_bytes(content)
    message = load_error(sentencepiece_folder)
    assert message is None or "tokenizer.model" in message


def test_a_length_beyond_the_file_is_not_believed() -> None:
    with pytest.raises(ValueError, match="damaged"):
        SentencePieceModel.parse(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f")
    with pytest.raises(ValueError, match="does not end"):
        SentencePieceModel.parse(b"\x0a" + b"\xff" * 11)
