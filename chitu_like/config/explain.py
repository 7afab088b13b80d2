"""`chitu-like explain KEY`: what a key means, which values fit, and where its value comes from."""

import os
from collections.abc import Mapping, Sequence

from chitu_like.config.files import find_top_file, model_entries, values_dir
from chitu_like.config.keys import (
    ALIASES,
    Key,
    find_key,
    known_keys,
    nearest_key,
    unknown_key_message,
)
from chitu_like.config.load import (
    CONFIG_NAME_VARIABLE,
    DEFAULT_CONFIG_NAME,
    PLANNING_CONFIG_NAME,
    load_config,
    load_planning,
)
from chitu_like.config.overrides import parse_overrides
from chitu_like.config.planning import PlanningConfig
from chitu_like.config.report import show_masked, value_of
from chitu_like.config.schema import ServeConfig
from chitu_like.config.secrets import ADMIN_API_KEY_VARIABLE, API_KEYS_VARIABLE
from chitu_like.config.section import show
from chitu_like.core.errors import ConfigError

VARIABLES: Mapping[str, str] = {
    "serve.api_keys": API_KEYS_VARIABLE,
    "serve.admin_api_key": ADMIN_API_KEY_VARIABLE,
}


def explain_key(
    name: str,
    overrides: Sequence[str] = (),
    config_name: str | None = None,
    environ: Mapping[str, str] = os.environ,
) -> str:
    """Say what a key means and what it is under these overrides.

    Args:
        name: a dotted key, an alias, or "models".
        overrides: KEY=VALUE texts as on the command line.
        config_name: as for `load_config`.
        environ: the environment.

    Returns: a few lines of text.
    Raises: ConfigError for an unknown key, and whatever `load_config` raises.
    """
    if name == "models":
        return _explain_models()
    if find_key(name) is not None:
        return _explain(ServeConfig, name, overrides, config_name, environ)
    if find_key(name, PlanningConfig) is not None:
        return _explain(PlanningConfig, name, overrides, config_name, environ)
    nearest = ServeConfig if nearest_key(name) else PlanningConfig
    raise ConfigError(unknown_key_message(name, nearest))


def _explain(
    whole: type[ServeConfig] | type[PlanningConfig],
    name: str,
    overrides: Sequence[str],
    config_name: str | None,
    environ: Mapping[str, str],
) -> str:
    key = find_key(name, whole)
    assert key is not None, f"the caller found {name}"
    config: ServeConfig | PlanningConfig
    if whole is ServeConfig:
        config = load_config(overrides, config_name, environ)
        top_name = DEFAULT_CONFIG_NAME
    else:
        config = load_planning(overrides, config_name, environ)
        top_name = PLANNING_CONFIG_NAME
    top = find_top_file(config_name or environ.get(CONFIG_NAME_VARIABLE) or top_name, values_dir())
    value = value_of(config, key)
    lines = [
        f"{key.name}: {key.setting.meaning}",
        f"  values:  {key.expected}",
        f"  default: {show(key.default)}",
        f"  now:     {show_masked(key, value)} ({_origin(key, config, overrides, environ, str(top))})",
    ]
    aliases = [alias for alias, target in ALIASES.items() if target == key.name]
    return "\n".join([*lines, *(f"  alias:   {alias}" for alias in aliases)])


def list_keys() -> str:
    """Every key with its meaning, one a line: those of serving, then those of planning."""
    keys = {**known_keys(), **known_keys(PlanningConfig)}
    width = max(map(len, keys))
    return "\n".join(f"{key.name:<{width}}  {key.setting.meaning}" for key in keys.values())


def _explain_models() -> str:
    entries = model_entries((values_dir(),))
    return "\n".join(
        [
            "models: which model, by its entry in config/models/",
            f"  values:  {', '.join(entries)}",
            "  default: tiny-chat",
            "  auto:    everything from models.ckpt_dir/config.json",
        ]
    )


def _origin(
    key: Key,
    config: ServeConfig | PlanningConfig,
    overrides: Sequence[str],
    environ: Mapping[str, str],
    top: str,
) -> str:
    inside = f"{key.name}."
    parsed = parse_overrides(overrides, type(config))
    given = [item for item in parsed if f"{item.name}.".startswith(inside)]
    if given:
        return f"command line: {' '.join(item.text for item in given)}"
    variable = VARIABLES.get(key.name)
    if value_of(config, key) == key.default:
        return "default"
    if variable is not None and environ.get(variable):
        return f"environment: {variable}"
    if isinstance(config, ServeConfig) and key.name.startswith("models."):
        return f"config/models/{config.models.name}.yaml"
    return top
