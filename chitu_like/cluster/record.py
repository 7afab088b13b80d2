"""Yaml files of ours, read with types checked: whatever is wrong is one line with file, place and key."""

from __future__ import annotations

import io
import math
import reprlib
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import TextIO, TypeAlias

import yaml

from chitu_like.cluster.units import Units, parse_quantity
from chitu_like.core.errors import ConfigError

MAX_FILE_BYTES = 16 << 20  # yaml takes seconds for each of them; a larger one is not what we read
MAX_DIGITS = 1000

_NO_WRAP = 1 << 30  # characters of a line

Plain: TypeAlias = "bool | int | float | str | list[Plain] | dict[str, Plain] | None"
"""What our files are written from."""


class Record:
    """Typed look-ups in one mapping of a file.

    Args:
        values: the mapping.
        where: file and place, for messages.

    Raises: ConfigError from every method, for what is missing or of another type.
    """

    def __init__(self, values: object, where: str) -> None:
        if not isinstance(values, dict):
            raise ConfigError(f"{where}: must be a mapping of keys to values, not {_shown(values)}")
        self._values: Mapping[object, object] = values
        self.where = where

    @classmethod
    def read(cls, path: Path) -> Record:
        """The whole of a yaml file, which is a mapping."""
        return cls(read_yaml(path), str(path))

    def only(self, *keys: str) -> None:
        """Refuse every other key: one that is misspelled would have no effect."""
        for key in self._values:
            if key not in keys:
                raise ConfigError(f"{self.where}: unknown key {_shown(key)}: use {', '.join(keys)}")

    def has(self, key: str) -> bool:
        """Whether the key is there."""
        return key in self._values

    def keys(self) -> Iterator[str]:
        """All keys; each is a text."""
        for key in self._values:
            if not isinstance(key, str):
                raise ConfigError(f"{self.where}: key {_shown(key)} must be a text: quote it")
            yield key

    def get(self, key: str) -> object:
        """Whatever stands there."""
        if key not in self._values:
            raise ConfigError(f"{self.where}: {key} is missing")
        return self._values[key]

    def text(self, key: str, default: str | None = None) -> str:
        """A text that is not empty; a whole number counts, since names may look like one."""
        if default is not None and key not in self._values:
            return default
        value = self.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str) or not value:
            raise self.broken(key, "a text")
        return value

    def texts(self, key: str) -> list[str]:
        """A list of texts."""
        values = self._list(key)
        numbered = Record({str(i): value for i, value in enumerate(values)}, f"{self.where}: {key}")
        return [numbered.text(str(i)) for i in range(len(values))]

    def whole(self, key: str, *, low: int, high: int, default: int | None = None) -> int:
        """A whole number of a range."""
        if default is not None and key not in self._values:
            return default
        value = self.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.broken(key, f"a whole number from {low} to {high}")
        return value

    def quantity(self, key: str, units: Units, default: float | None = None) -> float:
        """A number, or a text like "40 * GB"; `.inf` stays inf."""
        if default is not None and key not in self._values:
            return default
        value = self.get(key)
        if isinstance(value, str):
            return parse_quantity(value, units, f"{self.where}: {key}")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or _is_beyond(value):
            times = f", or one times {', '.join(units)}" if units else ""
            raise self.broken(key, f"a number{times}")
        return float(value)

    def record(self, key: str) -> Record:
        """A mapping below."""
        return Record(self.get(key), f"{self.where}: {key}")

    def records(self, key: str) -> list[Record]:
        """A list of mappings."""
        return [
            Record(value, f"{self.where}: {key}[{index}]")
            for index, value in enumerate(self._list(key))
        ]

    def broken(self, key: str, right: str) -> ConfigError:
        """The error for a value that must be something else."""
        return ConfigError(f"{self.where}: {key}={_shown(self.get(key))}: must be {right}")

    def _list(self, key: str) -> list[object]:
        values = self.get(key)
        if not isinstance(values, list):
            raise self.broken(key, "a list")
        return values


def read_yaml(path: Path) -> object:
    """Parse a yaml file; a key that is there twice is a mistake.

    Raises: ConfigError if it cannot be read, is too large or is no yaml.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            size = path.stat().st_size
            if size > MAX_FILE_BYTES:
                raise ConfigError(f"{path}: {size} bytes are too many: {MAX_FILE_BYTES} at most")
            return _parse(file)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: no yaml: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: no yaml: {' '.join(str(error).split())}") from None


def write_yaml(path: Path, values: Mapping[str, Plain], comment: str = "") -> None:
    """Write a mapping in its own order; what its lists and mappings hold takes a line each.

    Args:
        path: whose folder is made if need be.
        values: what `read_yaml` gives back.
        comment: lines for the top of the file.

    Raises: ConfigError if it cannot be written.
    """
    root = yaml.SafeDumper(io.StringIO(), sort_keys=False).represent_data(dict(values))
    _set_style(root, 0)
    text = yaml.serialize(root, Dumper=yaml.SafeDumper, width=_NO_WRAP)
    lines = [f"# {line}".rstrip() for line in comment.splitlines()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join([*lines, text]), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None


class _Loader(yaml.SafeLoader):
    """SafeLoader, but keys that are there twice, merged keys and endless numbers are refused."""

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Also raises for long ones: Python makes no text of them."""
        if len(node.value) > MAX_DIGITS:
            raise yaml.constructor.ConstructorError(
                None, None, f"a number of more than {MAX_DIGITS} digits", node.start_mark
            )
        return super().construct_yaml_int(node)

    def construct_mapping(
        self, node: yaml.MappingNode, deep: bool = False
    ) -> dict[Hashable, object]:
        """Also raises for keys that are there twice, and for `<<`: a few of them fill any memory."""
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.tag == "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, "keys cannot be merged (<<): write them out", key.start_mark
                )
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key.value!r} is there twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def _set_style(node: yaml.Node, depth: int) -> None:
    """Two levels of lines; below, everything on one."""
    if not isinstance(node, yaml.CollectionNode):
        return
    node.flow_style = depth >= 2
    for child in node.value:
        for part in child if isinstance(child, tuple) else (child,):  # key and value
            _set_style(part, depth + 1)


def _parse(file: TextIO) -> object:
    loader = _Loader(file)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _is_beyond(value: float) -> bool:
    """Whether a number is one no float holds."""
    try:
        return math.isnan(float(value))
    except OverflowError:
        return True


def _shown(value: object) -> str:
    """Its beginning: what aliases make of a short file may be longer than any memory."""
    text = repr(value[:60]) if isinstance(value, str) else reprlib.repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
