from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import (
    SPECIAL,
    shared_folder,
    write_byte_level,
    write_sentencepiece,
)

from chitu_like.server.detokenizer import IncrementalDetokenizer, StopMatcher
from chitu_like.server.tokenizer import Tokenizer

UNICODE = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
IDS = st.lists(st.integers(0, 420), max_size=50)  # special tokens and ids without a piece too


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(write_byte_level(tmp_path_factory.mktemp("byte_level")))


@pytest.fixture(scope="module")
def sentencepiece_bpe(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    pytest.importorskip("sentencepiece")
    return Tokenizer.load(write_sentencepiece(tmp_path_factory.mktemp("sentencepiece")))


@pytest.fixture(scope="module", params=["byte_level", "sentencepiece_bpe"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return request.getfixturevalue(request.param)


def chunks_of(ids: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    """Cut `ids` into runs of these sizes, over and over; a run may be empty."""
    chunks, start, turn = [], 0, 0
    while start < len(ids):
        size = sizes[turn % len(sizes)] if any(sizes) else 1
        chunks.append(list(ids[start : start + size]))
        start, turn = start + size, turn + 1
    return chunks


def run(detokenizer: IncrementalDetokenizer, chunks: list[list[int]]) -> list[str]:
    return [*(detokenizer.push(chunk) for chunk in chunks), detokenizer.finish()]


def tokens_of(tokenizer: Tokenizer, *texts: str) -> list[list[int]]:
    """Each text's own tokens, as if the model had cut the text there."""
    return [tokenizer.encode(text, add_special_tokens=False) for text in texts]


SIZES = st.lists(st.integers(0, 5), min_size=1, max_size=6)


@settings(max_examples=150, deadline=None)
@given(text=UNICODE, sizes=SIZES)
def test_pushed_text_is_the_decoded_text(tokenizer: Tokenizer, text: str, sizes: list[int]) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    detokenizer = IncrementalDetokenizer(tokenizer)
    parts = run(detokenizer, chunks_of(ids, sizes))
    assert "".join(parts) == detokenizer.text == tokenizer.decode(ids) == text


@settings(max_examples=150, deadline=None)
@given(ids=IDS, sizes=SIZES, skip=st.booleans())
def test_random_tokens_give_the_decoded_text(
    tokenizer: Tokenizer, ids: list[int], sizes: list[int], skip: bool
) -> None:
    detokenizer = IncrementalDetokenizer(tokenizer, skip_special_tokens=skip)
    parts = run(detokenizer, chunks_of(ids, sizes))
    assert "".join(parts) == tokenizer.decode(ids, skip_special_tokens=skip)
    assert detokenizer.num_tokens == len(ids)


@settings(max_examples=150, deadline=None)
@given(ids=IDS, cut=st.integers(0, 50), skip=st.booleans())
def test_prompt_and_output_join_to_the_text_of_all_tokens(
    tokenizer: Tokenizer, ids: list[int], cut: int, skip: bool
) -> None:
    prompt, output = ids[:cut], ids[cut:]
    before = IncrementalDetokenizer(tokenizer, skip_special_tokens=skip).push(prompt)
    detokenizer = IncrementalDetokenizer(tokenizer, prompt, skip_special_tokens=skip)
    text = "".join(run(detokenizer, [[token_id] for token_id in output]))
    assert before + text == tokenizer.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("family", ["qwen3", "minimind", "mistral_v1"])
def test_real_vocabularies_stream_what_they_decode(family: str) -> None:
    tokenizer = Tokenizer.load(shared_folder("tokenizers", family))
    text = "Grüße, 你好 🦊👩‍👩‍👧! ខ្មែរ\n\n  x = 3.14 "
    ids = tokenizer.encode(text)
    parts = run(IncrementalDetokenizer(tokenizer), [[token_id] for token_id in ids])
    assert "".join(parts) == text
    assert not any("\ufffd" in part for part in parts)


def test_a_character_appears_whole_and_as_soon_as_it_is_whole(byte_level: Tokenizer) -> None:
    (ids,) = tokens_of(byte_level, "a🦊b")
    assert len(ids) == 6
    detokenizer = IncrementalDetokenizer(byte_level)
    parts = run(detokenizer, [[token_id] for token_id in ids])
    assert parts == ["a", "", "", "", "🦊", "b", ""]
    assert detokenizer.text_offsets == [0, 1, 1, 1, 1, 2]


def test_broken_bytes_are_marked_at_the_end(byte_level: Tokenizer) -> None:
    (ids,) = tokens_of(byte_level, "a🦊")
    parts = run(IncrementalDetokenizer(byte_level), [ids[:-1]])
    assert parts == ["a", "\ufffd"]


def test_the_space_of_the_first_output_token_is_kept_after_a_prompt(tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece")
    tokenizer = Tokenizer.load(write_sentencepiece(tmp_path))
    (hello,) = tokens_of(tokenizer, "hello")
    assert IncrementalDetokenizer(tokenizer).push(hello) == "hello"
    assert IncrementalDetokenizer(tokenizer, [1]).push(hello) == "hello"
    assert IncrementalDetokenizer(tokenizer, [1, *hello]).push(hello) == " hello"


@pytest.mark.parametrize(
    ("pieces", "stop", "text", "reason"),
    [
        (["hello ", "world"], ["xyz"], "hello world", None),
        (["one ST", "OP two"], ["STOP"], "one ", "STOP"),
        (["one S", "T", "OP"], ["STOP"], "one ", "STOP"),
        (["one ST", "AR"], ["STOP"], "one STAR", None),
        (["STOP"], ["STOP"], "", "STOP"),
        (["a foobar b"], ["foobar", "foo"], "a ", "foo"),
        (["a foobar b"], ["oobar", "foobar"], "a ", "foobar"),
        (["a abab", "ac"], ["ababac"], "a ", "ababac"),
        (["aa", "ab"], ["aab"], "a", "aab"),
        (["你", "好的"], ["好"], "你", "好"),
        (["x\n", "\ny"], ["\n\n"], "x", "\n\n"),
        (["plain"], ["", "la"], "p", "la"),
    ],
)
def test_stop_strings_end_the_text(
    byte_level: Tokenizer,
    pieces: list[str],
    stop: list[str],
    text: str,
    reason: str | None,
) -> None:
    chunks = tokens_of(byte_level, *pieces)
    tail = tokens_of(byte_level, " and more")
    detokenizer = IncrementalDetokenizer(byte_level, stop=stop)
    parts = run(detokenizer, [*chunks, *(tail if reason else [])])
    assert "".join(parts) == text == detokenizer.text
    assert detokenizer.stop_reason == reason
    if reason is not None:
        with_stop = IncrementalDetokenizer(byte_level, stop=stop, include_stop_str_in_output=True)
        assert "".join(run(with_stop, [*chunks, *tail])) == text + reason
        assert detokenizer.num_tokens <= sum(map(len, chunks))


def test_nothing_that_may_become_a_stop_string_is_shown(byte_level: Tokenizer) -> None:
    detokenizer = IncrementalDetokenizer(byte_level, stop=["STOP", "TOPS!"])
    parts = [detokenizer.push(ids) for ids in tokens_of(byte_level, "go S", "TO", "x ST", "O")]
    assert parts == ["go ", "", "STOx ", ""]
    assert detokenizer.finish() == "STO"


def test_the_counted_tokens_end_with_the_stop_string(byte_level: Tokenizer) -> None:
    first, stop, rest = tokens_of(byte_level, "the fox ", "#", " said hello")
    detokenizer = IncrementalDetokenizer(byte_level, stop=["#"])
    assert detokenizer.push([*first, *stop, *rest]) == "the fox "
    assert detokenizer.num_tokens == len(first) + len(stop)
    assert detokenizer.push(rest) == ""
    assert detokenizer.finish() == ""
    assert detokenizer.num_tokens == len(first) + len(stop)


def test_an_early_stop_string_is_plain_text_before_min_tokens(byte_level: Tokenizer) -> None:
    (ids,) = tokens_of(byte_level, "#a#b#c")
    assert len(ids) == 6
    detokenizer = IncrementalDetokenizer(byte_level, stop=["#"], min_tokens=3)
    assert "".join(run(detokenizer, [ids])) == "#a"
    assert detokenizer.num_tokens == 3


def first_stop(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The plain way: look at each prefix of the text for the longest stop string that ends it."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if stop and text[:end].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


@settings(max_examples=300, deadline=None)
@given(
    text=st.text("ab é", max_size=30),
    stops=st.lists(st.text("ab é", min_size=1, max_size=5), max_size=4),
    sizes=SIZES,
)
def test_stops_are_found_as_the_plain_way_finds_them(
    byte_level: Tokenizer, text: str, stops: list[str], sizes: list[int]
) -> None:
    ids = byte_level.encode(text)
    expected, reason = first_stop(text, stops)
    detokenizer = IncrementalDetokenizer(byte_level, stop=stops)
    shown = ""
    for chunk in chunks_of(ids, sizes):
        shown += detokenizer.push(chunk)
        assert expected.startswith(shown)
    assert shown + detokenizer.finish() == expected
    assert detokenizer.stop_reason == reason


def test_the_matcher_holds_no_more_than_can_still_match() -> None:
    matcher = StopMatcher(["abac"])
    held = []
    for character in "xababac":
        found = matcher.feed(character)
        held.append(matcher.num_held)
    assert held[:-1] == [0, 1, 2, 3, 2, 3]
    assert found == "abac"


class CountingTokenizer(Tokenizer):
    """Counts how often bytes are looked up."""

    num_lookups = 0

    def token_bytes(self, token_id: int) -> bytes:
        self.num_lookups += 1
        return super().token_bytes(token_id)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        raise RuntimeError("decoding from the start makes the whole quadratic")


def test_each_token_is_looked_up_once_and_the_prompt_only_at_its_end(tmp_path: Path) -> None:
    tokenizer = CountingTokenizer.load(write_byte_level(tmp_path))
    assert isinstance(tokenizer, CountingTokenizer)
    (ids,) = tokens_of(tokenizer, "the fox said hello 🦊 " * 50)
    detokenizer = IncrementalDetokenizer(tokenizer, ids, stop=["never there"])
    assert tokenizer.num_lookups <= 4
    tokenizer.num_lookups = 0
    run(detokenizer, [[token_id] for token_id in ids])
    assert tokenizer.num_lookups == len(ids)


def test_special_tokens_make_no_text_but_count(byte_level: Tokenizer) -> None:
    ids = byte_level.encode(f"a{SPECIAL[2]}b{SPECIAL[1]}")
    detokenizer = IncrementalDetokenizer(byte_level)
    assert "".join(run(detokenizer, [ids])) == "ab"
    assert detokenizer.num_tokens == 4
    assert detokenizer.text_offsets == [0, 1, 1, 2]
    kept = IncrementalDetokenizer(byte_level, skip_special_tokens=False)
    assert "".join(run(kept, [ids])) == f"a{SPECIAL[2]}b{SPECIAL[1]}"
