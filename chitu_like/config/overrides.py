"""Read `KEY=VALUE` as typed by a user, and write it as Hydra's grammar wants it.

Hydra gives meaning to commas, brackets, quotes and much else. Users type paths, keys and lists. The
type of a key says what its value must be, so the value is read here by that type and handed to
Hydra as a literal: what you type is what you get.
"""

import re
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import get_args, get_origin

from chitu_like.config.keys import OPEN_KEYS, Key, find_key, section_names, unknown_key_message
from chitu_like.config.schema import ServeConfig
from chitu_like.config.section import JsonValue, Section, show
from chitu_like.core.errors import ConfigError

MAX_DEPTH = 8  # of brackets in one value; config.json files nest three deep
MAX_PARTS = 4096  # of one list or mapping

_INT = re.compile(r"[+-]?\d(?:_?\d){0,18}")
_FLOAT = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)
_NAME = re.compile(r"(?!(?:null|true|false|nan|inf)\Z)[A-Za-z_][A-Za-z0-9_-]*", re.IGNORECASE)
_WORDS: tuple[tuple[str, bool | None], ...] = (("null", None), ("true", True), ("false", False))


@dataclass(frozen=True, kw_only=True)
class Override:
    """One `KEY=VALUE` of the command line.

    Attributes:
        name: the key it sets, aliases replaced; "models" for the choice of the model.
        value: what it is set to.
        text: as typed, secrets masked.
    """

    name: str
    value: JsonValue
    text: str

    def to_hydra(self) -> str:
        """The same override in Hydra's grammar."""
        if self.name == "models":
            return f"models={self.value}"
        return f"++{self.name}={to_literal(self.value)}"


def parse_overrides(texts: Sequence[str], top: type[Section] = ServeConfig) -> tuple[Override, ...]:
    """Read a command line's overrides.

    Args:
        texts: KEY=VALUE each.
        top: the whole configuration, which says which keys there are.

    Raises: ConfigError for what is no KEY=VALUE, an unknown key, or a key given twice.
    """
    found: dict[str, Override] = {}
    for text in texts:
        override = _parse_override(text, top)
        if override.name in found:
            raise ConfigError(
                f"{override.name} is given twice ({found[override.name].text} and "
                f"{override.text}): give it once"
            )
        found[override.name] = override
    return tuple(found.values())


def _parse_override(text: str, top: type[Section]) -> Override:
    typed, equals, value_text = text.partition("=")
    name = typed.strip().removeprefix("+").removeprefix("+")
    if name.startswith("~"):
        raise ConfigError(f"{show(text)}: a key cannot be removed; leave it out for its default")
    if not equals or name.startswith("-"):
        raise ConfigError(f"{show(text)}: write KEY=VALUE, for example infer.max_reqs=64")
    if name == "models" and "models" in section_names(top):
        return Override(name=name, value=value_text.strip(), text=show(text))
    key = find_key(name, top)
    if key is None or not all(map(_NAME.fullmatch, name.split("."))):
        raise ConfigError(unknown_key_message(name, top))
    if key.name == "models.hf_config":  # a folder's config.json would win: not what is meant here
        raise ConfigError(
            f"{show(text)}: models.hf_config belongs in a file of models/; on the command line use "
            f"{name.replace('hf_config', 'hf_overrides', 1)}"
        )
    shown = f"{name}=***" if key.setting.secret else show(text)
    is_inside = key.name in OPEN_KEYS and name != key.name
    value = read_any(value_text) if is_inside else read_value(key, value_text)
    return Override(name=name if is_inside else key.name, value=value, text=shown)


def read_value(key: Key, text: str) -> JsonValue:
    """Read the text of a value by the type of its key; whether it fits is the schema's to say."""
    options = _options(key.hint)
    stripped = text.strip()
    if types.NoneType in options and stripped.lower() == "null":
        return None
    listed = next((option for option in options if get_origin(option) is tuple), None)
    if listed is not None:
        inner = stripped[1:-1] if stripped.startswith("[") and stripped.endswith("]") else stripped
        is_text = str in get_args(listed)
        return [_unquote(part) if is_text else _read_scalar(part) for part in _split(inner)]
    if str in options:
        return _unquote(text)
    return read_any(text)


def _options(hint: object) -> tuple[object, ...]:
    return get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def read_any(text: str, depth: int = 0) -> JsonValue:
    """Read a value of no declared type: a scalar, [a,b] or {name:value}; JSON is read too.

    Raises: ConfigError if it nests too deeply or a mapping's name is no name.
    """
    text = text.strip()
    if depth > MAX_DEPTH:
        raise ConfigError(f"a value nests more than {MAX_DEPTH} brackets: {show(text)}")
    if text.startswith("[") and text.endswith("]"):
        return [read_any(part, depth + 1) for part in _split(text[1:-1])]
    if text.startswith("{") and text.endswith("}"):
        return dict(_read_pair(part, depth) for part in _split(text[1:-1]))
    return _read_scalar(text)


def _read_pair(part: str, depth: int) -> tuple[str, JsonValue]:
    name, colon, value = part.partition(":")
    name = _unquote(name.strip())
    if not colon or not _NAME.fullmatch(name):
        raise ConfigError(f"{show(part)}: write {{name:value,...}}")
    return name, read_any(value, depth + 1)


def _read_scalar(text: str) -> JsonValue:
    text = text.strip()
    for word, value in _WORDS:
        if text.lower() == word:
            return value
    if _INT.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else _unquote(text)


def _unquote(text: str) -> str:
    """Take off one pair of quotes around the whole text, if there is one."""
    stripped = text.strip()
    if not _QUOTED.fullmatch(stripped):
        return text
    quote = stripped[0]
    return re.sub(rf"\\([\\{quote}])", r"\1", stripped[1:-1])


def _split(text: str) -> list[str]:
    """Cut at the commas that stand outside of brackets and quotes."""
    parts = [part.strip() for part in _cut(text)]
    if len(parts) > MAX_PARTS:
        raise ConfigError(f"a list of {len(parts)} parts: use at most {MAX_PARTS}")
    return [] if parts == [""] else parts


def _cut(text: str) -> Iterator[str]:
    start = position = depth = 0
    while position < len(text):
        quoted = _QUOTED.match(text, position)
        if quoted:
            position = quoted.end()
            continue
        char = text[position]
        depth += (char in "[{") - (char in "]}")
        if char == "," and depth == 0:
            yield text[start:position]
            start = position + 1
        position += 1
    yield text[start:]


def to_literal(value: JsonValue) -> str:
    """Write a value in Hydra's grammar so that Hydra reads back the same value."""
    if isinstance(value, str):
        return quote(value)
    if isinstance(value, list):
        return "[" + ",".join(map(to_literal, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{name}:{to_literal(part)}" for name, part in value.items()) + "}"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def quote(text: str) -> str:
    r"""Quote text for Hydra.

    Backslashes count only before a quote, at the end, and before OmegaConf's `${`, which is
    escaped too: a `${` that a user types is text.
    """
    text = re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", text)
    text = re.sub(r"(\\*)'", lambda found: found[1] * 2 + r"\'", text)
    text = re.sub(r"\\+\Z", lambda found: found[0] * 2, text)
    return f"'{text}'"
