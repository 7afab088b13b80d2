"""One answer to which files are a tokenizer, for the loader and for whoever must know before it."""

from __future__ import annotations

from pathlib import Path

import pytest

from chitu_like.config.load import load_config
from chitu_like.core.errors import CheckpointError
from chitu_like.model_files import read_model_files
from chitu_like.server.tokenizer import Tokenizer
from chitu_like.server.tokenizer_files import find_tokenizer_files


@pytest.mark.parametrize(
    ("there", "found"),
    [
        (["vocab.json"], None),
        (["vocab.json", "tokenizer.model"], ["tokenizer.model"]),
        (["original/tokenizer.model"], ["original/tokenizer.model"]),
        (["vocab.json", "merges.txt", "tokenizer.model"], ["vocab.json", "merges.txt"]),
        (["tokenizer.json", "vocab.json", "merges.txt"], ["tokenizer.json"]),
    ],
)
def test_the_first_whole_kind_is_the_tokenizer(
    tmp_path: Path, there: list[str], found: list[str] | None
) -> None:
    (tmp_path / "original").mkdir()
    for name in there:
        (tmp_path / name).touch()
    expected = None if found is None else tuple(tmp_path / name for name in found)
    assert find_tokenizer_files(tmp_path) == expected


def test_half_a_tokenizer_is_refused_before_and_by_the_loader_in_the_same_words(
    tmp_path: Path,
) -> None:
    (tmp_path / "vocab.json").write_text("{}")
    config = load_config(["models=tiny-chat", f"models.tokenizer_path={tmp_path}"])
    with pytest.raises(CheckpointError, match="has no tokenizer") as early:
        read_model_files(config)
    with pytest.raises(CheckpointError) as late:
        Tokenizer.load(tmp_path)
    assert str(early.value) == str(late.value)
