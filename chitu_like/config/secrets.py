"""Where the service's keys come from: the configuration, a file it names, or the environment."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from chitu_like.config.schema import ServeConfig, ServeSection
from chitu_like.core.errors import ConfigError

API_KEYS_VARIABLE = "CHITU_LIKE_API_KEYS"
ADMIN_API_KEY_VARIABLE = "CHITU_LIKE_ADMIN_API_KEY"
MAX_FILE_BYTES = 1 << 20


def with_secrets(section: ServeSection, environ: Mapping[str, str]) -> ServeSection:
    """Fill in keys that the configuration leaves out from `environ`, and read `file:` values.

    Raises: ConfigError if a file cannot be read or holds no key, so that a slip never opens the
        service to everybody.
    """
    keys = section.api_keys or _listed(environ.get(API_KEYS_VARIABLE, ""))
    expanded = tuple(found for key in keys for found in _expand("serve.api_keys", key))
    admin = section.admin_api_key or environ.get(ADMIN_API_KEY_VARIABLE) or None
    if admin is not None:
        candidates = _expand("serve.admin_api_key", admin)
        if len(candidates) != 1:
            raise ConfigError(f"serve.admin_api_key={admin}: the file must hold exactly one key")
        admin = candidates[0]
    return replace(section, api_keys=expanded, admin_api_key=admin)


def secrets_of(config: ServeConfig) -> tuple[str, ...]:
    """Every text of the configuration that must never be printed."""
    admin = config.serve.admin_api_key
    return (*config.serve.api_keys, *(() if admin is None else (admin,)))


def _listed(text: str) -> tuple[str, ...]:
    if not text:
        return ()
    keys = tuple(part.strip() for part in text.split(",") if part.strip())
    if not keys:
        raise ConfigError(f"{API_KEYS_VARIABLE} holds no key: give a comma list or unset it")
    return keys


def _expand(key: str, value: str) -> tuple[str, ...]:
    if not value.startswith("file:"):
        return (value,)
    path = Path(value.removeprefix("file:")).expanduser()
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_FILE_BYTES)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"{key}={value}: cannot read the file: {reason}") from None
    found = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not found:
        raise ConfigError(f"{key}={value}: the file holds no key; write one a line")
    return found
