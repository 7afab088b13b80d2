"""Which files of a checkpoint folder hold its tokenizer: one answer for whoever asks."""

from __future__ import annotations

from pathlib import Path

from chitu_like.core.errors import CheckpointError

_KINDS = (
    ("tokenizer.json",),
    ("vocab.json", "merges.txt"),
    ("tokenizer.model",),
    ("original/tokenizer.model",),
)
"""Files of each kind, the kind to be preferred first."""

TOKENIZER_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    *(name for names in _KINDS for name in names),
)
"""Everything that reading a tokenizer may look at."""


def find_tokenizer_files(folder: Path) -> tuple[Path, ...] | None:
    """The files of the first kind that is whole; None where there is none."""
    for names in _KINDS:
        files = tuple(folder / name for name in names)
        if all(file.is_file() for file in files):
            return files
    return None


def require_tokenizer_files(folder: Path) -> tuple[Path, ...]:
    """The same. Raises: CheckpointError where there is none, saying what was looked for."""
    files = find_tokenizer_files(folder)
    if files is None:
        raise CheckpointError(
            f"{folder} has no tokenizer: need tokenizer.json, vocab.json with merges.txt, or "
            "tokenizer.model (models.tokenizer_path)"
        )
    return files
