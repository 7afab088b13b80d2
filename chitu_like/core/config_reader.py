"""Read a model's config.json with types checked: a broken key is one line that names it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from chitu_like.core.errors import CheckpointError

REQUIRED = object()
"""Default of a key that must be there."""


class ConfigReader:
    """Typed look-ups in a parsed JSON object.

    Every look-up takes several spellings of one key, the newest first; null counts as absent.

    Args:
        values: the object.
        source: what it was read from, for messages.
    """

    def __init__(self, values: Mapping[str, object], source: str) -> None:
        self._values = values
        self.source = source

    @classmethod
    def from_file(cls, path: Path) -> ConfigReader:
        """Parse a JSON file.

        Raises: CheckpointError if it cannot be read or holds no JSON object.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: not valid JSON: {error}") from None
        if not isinstance(values, dict):
            raise CheckpointError(f"{path}: holds {type(values).__name__}, not a JSON object")
        return cls(values, str(path))

    def has(self, key: str) -> bool:
        """Whether the key is there at all, be it null."""
        return key in self._values

    def find(self, *keys: str) -> object:
        """The first value among `keys` that is not null, or None."""
        return next((self._values[k] for k in keys if self._values.get(k) is not None), None)

    def integer(self, *keys: str, default: object = REQUIRED, high: int = 1 << 31) -> int:
        """A count or size: 1 <= value <= high."""
        value = self._or_default(keys, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= high:
            raise self.broken(keys[0], value, f"a whole number from 1 to {high}")
        return value

    def number(self, *keys: str, default: object = REQUIRED) -> float:
        """A positive finite number."""
        value = self._or_default(keys, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise self.broken(keys[0], value, "a number")
        if not 0 < value < math.inf:
            raise self.broken(keys[0], value, "a number above 0")
        return float(value)

    def flag(self, *keys: str, default: bool) -> bool:
        """A boolean."""
        value = self._or_default(keys, default)
        if not isinstance(value, bool):
            raise self.broken(keys[0], value, "true or false")
        return value

    def text(self, *keys: str, default: object = REQUIRED) -> str:
        """A string."""
        value = self._or_default(keys, default)
        if not isinstance(value, str):
            raise self.broken(keys[0], value, "a text")
        return value

    def token_ids(self, key: str) -> tuple[int, ...]:
        """A token id, a list of them, or none at all."""
        value = self.find(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
            raise self.broken(key, value, "a token id or a list of them")
        return tuple(ids)

    def section(self, *keys: str) -> ConfigReader:
        """A nested object; empty where it is absent."""
        value = self._or_default(keys, {})
        if not isinstance(value, Mapping):
            raise self.broken(keys[0], value, "an object")
        return ConfigReader(value, f"{self.source}: {keys[0]}")

    def broken(self, key: str, value: object, right: str) -> CheckpointError:
        """The error for a key whose value is wrong or missing."""
        fault = f"{key} is missing" if value is None else f"{key}={_shorten(value)}"
        return CheckpointError(f"{self.source}: {fault}, must be {right}")

    def _or_default(self, keys: tuple[str, ...], default: object) -> object:
        value = self.find(*keys)
        if value is None and default is not REQUIRED:
            return default
        return value


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
