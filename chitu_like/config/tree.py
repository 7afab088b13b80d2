"""A configuration as a tree of plain values, and back: files are read and processes told this way."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TypeVar

from chitu_like.config.keys import unknown_key_message
from chitu_like.config.schema import ServeConfig
from chitu_like.config.section import Section, settings_of, show, subsections_of
from chitu_like.core.errors import ConfigError

S = TypeVar("S", bound=Section)


def build(section: type[S], tree: Mapping[str, object], top: type[Section] = ServeConfig) -> S:
    """Make a Section of a tree of plain values; what the tree leaves out takes its default.

    Args:
        section: to make.
        tree: its values.
        top: the whole configuration, whose keys are named where one is unknown.

    Raises: ConfigError for an unknown key, or a value that does not fit.
    """
    names = {item.name for item in settings_of(section)}
    subsections = subsections_of(section)
    values: dict[str, object] = {}
    for name, value in tree.items():
        if name in subsections:
            inside = _mapping(section.prefix + name, value, top)
            values[name] = build(subsections[name], inside, top)
        elif name in names:
            values[name] = value
        else:
            raise ConfigError(unknown_key_message(f"{section.prefix}{name}", top))
    return section(**values)


def _mapping(key: str, value: object, top: type[Section]) -> Mapping[str, object]:
    if value is None:  # a section's name with nothing below it
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key}={show(value)}: {unknown_key_message(key, top)}")
    return value


def without_secrets(config: ServeConfig) -> ServeConfig:
    """The configuration for a process that serves no HTTP, such as a rank on another node."""
    return replace(config, serve=replace(config.serve, api_keys=(), admin_api_key=None))


def config_to_json(config: ServeConfig) -> str:
    """Write a configuration, secrets included: for our own processes only, never for a log."""
    return json.dumps(asdict(config))


def config_from_json(text: str) -> ServeConfig:
    """Read what `config_to_json` wrote."""
    return build(ServeConfig, json.loads(text))
