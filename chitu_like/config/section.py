"""Section: a frozen dataclass whose fields carry their meaning and check themselves.

A field is declared once, with its type, default, meaning and bounds. From that one declaration
come the check of a value, the sentence that says what would be right, and `chitu-like explain`.
"""

import math
import types
from collections.abc import Iterator, Mapping
from contextlib import suppress
from copy import copy
from dataclasses import Field, dataclass, field, fields
from typing import (
    ClassVar,
    Literal,
    TypeAlias,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from chitu_like.core.errors import ConfigError

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"
Auto: TypeAlias = Literal["auto"]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a field says about itself beside its type and default.

    Attributes:
        meaning: one sentence, as `chitu-like explain` prints it.
        low: smallest number allowed, in the unit of the key.
        high: largest number allowed.
        secret: the value is never printed.
        derived: filled in by the loader, not settable by users.
    """

    meaning: str
    low: float = -math.inf
    high: float = math.inf
    secret: bool = False
    derived: bool = False


def setting(
    default: T,
    meaning: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    secret: bool = False,
    derived: bool = False,
) -> T:
    """Declare a field of a Section; the arguments are those of `Setting`."""
    described = Setting(meaning=meaning, low=low, high=high, secret=secret, derived=derived)
    metadata = {"setting": described}
    if isinstance(default, dict):
        return field(default_factory=lambda: copy(default), metadata=metadata)
    return field(default=default, repr=not secret, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Section:
    """Base of every group of keys: the fields are coerced to their types and checked on creation.

    Attributes:
        prefix: what stands before a field's name in a key, for example "infer.".
    """

    prefix: ClassVar[str] = ""

    def __post_init__(self) -> None:
        """Raise ConfigError for the first field whose value does not fit."""
        hints = type_hints(type(self))
        for item in settings_of(type(self)):
            value = fit(self.prefix + item.name, getattr(self, item.name), hints[item.name], item)
            object.__setattr__(self, item.name, value)


def type_hints(section: type[Section]) -> Mapping[str, object]:
    """Field name -> evaluated type of a Section."""
    return get_type_hints(section)


def settings_of(section: type[Section]) -> Iterator["Field[object]"]:
    """The fields of a Section that hold values, sub-sections left out."""
    return (item for item in fields(section) if "setting" in item.metadata)


def subsections_of(section: type[Section]) -> Mapping[str, type[Section]]:
    """Field name -> Section type, for the fields of `section` that are Sections themselves."""
    return {
        name: hint
        for name, hint in type_hints(section).items()
        if isinstance(hint, type) and issubclass(hint, Section)
    }


def setting_of(item: "Field[object]") -> Setting:
    """The Setting that a field was declared with."""
    declared = item.metadata["setting"]
    assert isinstance(declared, Setting), f"{item.name} was not declared by setting()"
    return declared


def fit(key: str, value: object, hint: object, item: "Field[object]") -> object:
    """Return `value` as the type `hint`.

    Raises: ConfigError, naming the key, the value and what would be right.
    """
    declared = setting_of(item)
    try:
        return _coerce(value, hint, declared)
    except _Misfit:
        shown = "***" if declared.secret and value is not None else show(value)
        raise ConfigError(f"{key}={shown}: use {describe(hint, declared)}") from None


def show(value: object) -> str:
    """A value as users would type it, cut where it is long."""
    if value is None or isinstance(value, bool):
        text = {None: "null", True: "true", False: "false"}[value]
    elif isinstance(value, (list, tuple)):
        text = "[" + ",".join(show(part) for part in value) + "]"
    elif isinstance(value, Mapping):
        text = "{" + ",".join(f"{name}:{show(part)}" for name, part in value.items()) + "}"
    elif isinstance(value, str):
        text = value if value.isprintable() and value else repr(value)
    else:
        text = str(value)
    return text if len(text) <= 200 else text[:197] + "..."


class _Misfit(Exception):
    """A value is not of the type asked for; never leaves this module."""


def _coerce(value: object, hint: object, declared: Setting) -> object:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _coerce_union(value, get_args(hint), declared)
    if origin is Literal:
        return _require(isinstance(value, str) and value in get_args(hint), value)
    if origin is tuple:
        _require(isinstance(value, (list, tuple)), value)
        parts = value if isinstance(value, (list, tuple)) else ()
        return tuple(_coerce(part, get_args(hint)[0], declared) for part in parts)
    if hint is float and type(value) is int:
        value = float(value)
    if hint in (int, float) and type(value) is hint:
        number = value if isinstance(value, (int, float)) else math.nan
        return _require(math.isfinite(number) and declared.low <= number <= declared.high, value)
    if hint is str:
        return _require(isinstance(value, str) and bool(value) and value.isprintable(), value)
    if hint is types.NoneType:
        return _require(value is None, value)
    if hint is bool:
        return _require(isinstance(value, bool), value)
    return _require(origin is not None and isinstance(value, origin), value)


def _coerce_union(value: object, options: tuple[object, ...], declared: Setting) -> object:
    for option in options:
        with suppress(_Misfit):
            return _coerce(value, option, declared)
    raise _Misfit


def _require(holds: bool, value: object) -> object:
    if not holds:
        raise _Misfit
    return value


def describe(hint: object, declared: Setting) -> str:
    """Say which values fit, for example "auto or a whole number from 1 to 1024"."""
    words = list(_words(hint, declared))
    words.sort(key=lambda word: (word != "auto", " " in word))
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " or " + words[-1]


def _words(hint: object, declared: Setting) -> Iterator[str]:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        for option in get_args(hint):
            yield from _words(option, declared)
    elif origin is Literal:
        yield from map(show, get_args(hint))
    elif origin is tuple:
        yield f"a list like [a,b], each {describe(get_args(hint)[0], declared)}"
    elif hint in (int, float):
        yield ("a whole number" if hint is int else "a number") + _bounds(declared)
    elif hint is bool:
        yield from ("true", "false")
    elif hint is str:
        yield "printable text that is not empty"
    else:
        yield "null" if hint is types.NoneType else "a mapping like {name:value}"


def _bounds(declared: Setting) -> str:
    if math.isinf(declared.low) or math.isinf(declared.high):
        return ""
    return f" from {declared.low} to {declared.high}"
