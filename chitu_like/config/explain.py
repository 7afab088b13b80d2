"""`chitu-like explain KEY`: what a key means, which values fit, and where its value comes from."""

import os
from collections.abc import Mapping, Sequence

from chitu_like.config.files import find_top_file, model_entries, values_dir
from chitu_like.config.keys import ALIASES, Key, find_key, known_keys, unknown_key_message
from chitu_like.config.load import CONFIG_NAME_VARIABLE, DEFAULT_CONFIG_NAME, load_config
from chitu_like.config.overrides import parse_overrides
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
    key = find_key(name)
    if key is None:
        raise ConfigError(unknown_key_message(name))
    config = load_config(overrides, config_name, environ)
    top = find_top_file(
        config_name or environ.get(CONFIG_NAME_VARIABLE) or DEFAULT_CONFIG_NAME, values_dir()
    )
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
    """Every key with its meaning, one a line."""
    width = max(map(len, known_keys()))
    return "\n".join(f"{key.name:<{width}}  {key.setting.meaning}" for key in known_keys().values())


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
    config: ServeConfig,
    overrides: Sequence[str],
    environ: Mapping[str, str],
    top: str,
) -> str:
    inside = f"{key.name}."
    given = [item for item in parse_overrides(overrides) if f"{item.name}.".startswith(inside)]
    if given:
        return f"command line: {' '.join(item.text for item in given)}"
    variable = VARIABLES.get(key.name)
    if value_of(config, key) == key.default:
        return "default"
    if variable is not None and environ.get(variable):
        return f"environment: {variable}"
    return f"config/models/{config.models.name}.yaml" if key.name.startswith("models.") else top
