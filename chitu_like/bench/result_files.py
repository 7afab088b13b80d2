"""Results on the disk."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from chitu_like.core.errors import ConfigError


def write_json(path: Path, results: Mapping[str, object]) -> None:
    """Write one JSON object.

    Raises: ConfigError if the file cannot be written.
    """
    write_text(path, json.dumps(results, indent=1) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows that have the same columns, the first row's in its order.

    Raises: ConfigError if the file cannot be written.
    """
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]) if rows else [])
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise _not_written(path, error) from None


def write_text(path: Path, text: str) -> None:
    """Write a text.

    Raises: ConfigError if the file cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise _not_written(path, error) from None


def _not_written(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{path} cannot be written: {error.strerror}")
