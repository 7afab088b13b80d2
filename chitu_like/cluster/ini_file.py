"""Ini files whose values are figures, names and lists of names: parsed with care, never evaluated."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

from chitu_like.cluster.units import Units, parse_quantity
from chitu_like.core.errors import ConfigError

MAX_FILE_BYTES = 64 << 20
_NO_DEFAULTS = "\0"  # configparser would copy a section [DEFAULT] into all others
_WORD = r"""(?:'([^'"\[\],]*)'|"([^'"\[\],]*)"|([^\s'"\[\],]+))"""
_ONE = re.compile(_WORD)
_WHOLE = re.compile(r"-?\d{1,18}", re.ASCII)


class IniFile:
    """An ini file; every mistake in it is a line that names file, section and key.

    Args:
        path: to read.

    Raises: ConfigError, from every method.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._parser = configparser.ConfigParser(
            interpolation=None,
            delimiters=("=",),
            inline_comment_prefixes=("#", ";"),
            default_section=_NO_DEFAULTS,
        )
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                raise ConfigError(f"{path}: larger than {MAX_FILE_BYTES >> 20} MiB")
            self._parser.read_string(path.read_text(encoding="utf-8-sig"), str(path))
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
        except (configparser.Error, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: no ini file: {_one_line(error)}") from None

    @property
    def sections(self) -> list[str]:
        """Their names, in the file's order."""
        return self._parser.sections()

    def has(self, section: str) -> bool:
        """Whether there is such a section."""
        return self._parser.has_section(section)

    def keys(self, section: str) -> list[str]:
        """Keys of a section, in lower case."""
        if not self.has(section):
            raise ConfigError(f"{self.path}: there is no section [{section}]")
        return list(self._parser[section])

    def where(self, section: str, key: str) -> str:
        """What messages begin with."""
        return f"{self.path}: [{section}] {key}"

    def text(self, section: str, key: str) -> str:
        """A value as it stands there."""
        if key not in self.keys(section):
            raise ConfigError(f"{self.where(section, key)} is missing")
        return self._parser[section][key].strip()

    def name(self, section: str, key: str) -> str:
        """One name, quoted or not."""
        text = self.text(section, key)
        found = _ONE.fullmatch(text)
        if found is None:
            raise ConfigError(f"{self.where(section, key)}={_short(text)}: give one name")
        return next(group for group in found.groups() if group is not None)

    def names(self, section: str, key: str) -> list[str]:
        """A list of names or numbers, quoted or not: ['source', 0, 1]."""
        text = self.text(section, key)
        inside = text[1:-1].strip() if text[:1] == "[" and text[-1:] == "]" else None
        words = [] if not inside else [_ONE.fullmatch(word.strip()) for word in inside.split(",")]
        if inside is None or None in words:
            raise ConfigError(
                f"{self.where(section, key)}={_short(text)}: give a list, like [1, 2] or ['a', 'b']"
            )
        return [next(g for g in word.groups() if g is not None) for word in words if word]

    def whole(self, section: str, key: str, *, low: int, high: int) -> int:
        """A whole number of a range."""
        return self.as_whole(self.text(section, key), self.where(section, key), low=low, high=high)

    @staticmethod
    def as_whole(text: str, where: str, *, low: int, high: int) -> int:
        """A word as a whole number of a range."""
        if _WHOLE.fullmatch(text) and low <= int(text) <= high:
            return int(text)
        raise ConfigError(f"{where}: {_short(text)} must be a whole number from {low} to {high}")

    def quantity(self, section: str, key: str, units: Units) -> float:
        """A number, or a number times a unit."""
        return parse_quantity(self.text(section, key), units, self.where(section, key))


def _one_line(error: Exception) -> str:
    """What is wrong; configparser repeats the whole line, however long."""
    return " ".join(str(error).split())[:200]


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
