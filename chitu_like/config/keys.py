"""The dotted keys of the configuration: which exist, what they hold, and the nearest to a slip."""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass
from functools import cache

from chitu_like.config.schema import ServeConfig
from chitu_like.config.section import (
    Section,
    Setting,
    describe,
    setting_of,
    settings_of,
    subsections_of,
    type_hints,
)

ALIASES: Mapping[str, str] = {"infer.max_batch_size": "infer.max_reqs"}
OPEN_KEYS = ("models.hf_config", "models.hf_overrides")  # mappings with names of their own


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key a user may set.

    Attributes:
        name: the dotted key.
        hint: its type.
        default: its default.
        setting: meaning, bounds and whether it is secret.
    """

    name: str
    hint: object
    default: object
    setting: Setting

    @property
    def expected(self) -> str:
        """Which values fit, in words."""
        return describe(self.hint, self.setting)


def known_keys(top: type[Section] = ServeConfig) -> Mapping[str, Key]:
    """Every key users may set, by its dotted name, in the order of the schema.

    Args:
        top: the whole configuration that they are the keys of: the service's, or planning's.
    """
    return _keys_by_name(top)  # type: ignore[arg-type]  # a class hashes, whatever its instances do


@cache
def _keys_by_name(top: type[Section]) -> Mapping[str, Key]:
    return {key.name: key for key in _walk(top)}


def _walk(section: type[Section]) -> Iterator[Key]:
    hints = type_hints(section)
    for item in settings_of(section):
        declared = setting_of(item)
        if not declared.derived:
            default = {} if item.default is MISSING else item.default
            name = section.prefix + item.name
            yield Key(name=name, hint=hints[item.name], default=default, setting=declared)
    for subsection in subsections_of(section).values():
        yield from _walk(subsection)


def section_names(top: type[Section] = ServeConfig) -> tuple[str, ...]:
    """Names that hold keys but are none themselves."""
    return tuple(subsections_of(top))


def find_key(name: str, top: type[Section] = ServeConfig) -> Key | None:
    """The key that `name` (or the alias `name`, or a name inside an open mapping) stands for."""
    keys = known_keys(top)
    if name in OPEN_KEYS or not name.startswith(tuple(f"{key}." for key in OPEN_KEYS)):
        return keys.get(ALIASES.get(name, name))
    return next(
        (keys[key] for key in OPEN_KEYS if name.startswith(f"{key}.") and key in keys), None
    )


def nearest_key(name: str, top: type[Section] = ServeConfig) -> str | None:
    """The key most likely meant by `name`, or None."""
    names = [*known_keys(top), *ALIASES]
    if "models" in section_names(top):
        names.append("models")
    last = name.rsplit(".", 1)[-1]
    same_end = [known for known in names if known.rsplit(".", 1)[-1] == last]
    if same_end:
        return same_end[0]
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return close[0]
    ends = {known.rsplit(".", 1)[-1]: known for known in names}
    close = difflib.get_close_matches(last, ends, n=1, cutoff=0.75)
    return ends[close[0]] if close else None


def unknown_key_message(name: str, top: type[Section] = ServeConfig) -> str:
    """One line for a key that does not exist."""
    if name in section_names(top):
        inside = [key for key in known_keys(top) if key.startswith(f"{name}.")]
        return f"{name} is a section, not a key: set one of {', '.join(inside)}"
    if name == "models.name":
        return "models.name is set by models=NAME; what clients see is serve.model_name"
    nearest = nearest_key(name, top)
    hint = f"did you mean {nearest}?" if nearest else "`chitu-like explain` lists every key"
    return f"unknown key {name}: {hint}"
