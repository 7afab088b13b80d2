"""Files of a profile: JSON into checked records, and back."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from chitu_like.core.errors import ConfigError

MAX_FILE_BYTES = 64 << 20

_Record = TypeVar("_Record")


def read_record(path: Path, kind: type[_Record]) -> _Record:
    """Decode a JSON file.

    Raises: ConfigError naming the file, and the key that is wrong.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_FILE_BYTES >> 20} MiB: this is no profile")
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}") from None


def write_record(path: Path, record: object) -> None:
    """Write a record as JSON for the eye. Raises: ConfigError if it cannot be written."""
    write_text(path, msgspec.json.format(msgspec.json.encode(record), indent=1).decode() + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file and the folders above it. Raises: ConfigError if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None
