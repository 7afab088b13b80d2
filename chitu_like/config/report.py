"""The configuration as printed once at start: every key, its value, and why."""

from collections.abc import Iterator

from chitu_like.config.keys import Key, known_keys
from chitu_like.config.resolved import ResolvedConfig
from chitu_like.config.section import Section, show

VALUE_WIDTH = 44


def format_config(resolved: ResolvedConfig) -> str:
    """Write a line per key: name, value, and "default", "set" or what decided an `auto`.

    Secrets are masked. Call it once: after `settle`, or after `resolve` where nothing is served.
    """
    reasons = {decision.key: decision for decision in resolved.decisions}
    rows = [("models", resolved.config.models.name, "")]
    for key in known_keys().values():
        value = value_of(resolved.config, key)
        decision = reasons.get(key.name)
        if decision is not None:
            rows.append((key.name, decision.value, f"auto: {decision.reason}"))
        else:
            origin = "default" if value == key.default else "set"
            rows.append((key.name, show_masked(key, value), origin))
    return "\n".join(_lines(rows))


def value_of(config: Section, key: Key) -> object:
    """The value of `key` in `config`."""
    value: object = config
    for part in key.name.split("."):
        assert isinstance(value, Section), f"{key.name} goes through a value that is no section"
        value = getattr(value, part)
    return value


def show_masked(key: Key, value: object) -> str:
    """A value as users would type it; of a secret only how many there are."""
    if key.setting.secret and value:
        return f"*** ({len(value)} keys)" if isinstance(value, tuple) else "***"
    return show(value)


def _lines(rows: list[tuple[str, str, str]]) -> Iterator[str]:
    key_width = max(len(name) for name, _, _ in rows)
    cut = [(name, _cut(value), reason) for name, value, reason in rows]
    value_width = max(len(value) for _, value, _ in cut)
    for name, value, reason in cut:
        yield f"{name:<{key_width}}  {value:<{value_width}}  {reason}".rstrip()


def _cut(value: str) -> str:
    if len(value) <= VALUE_WIDTH:
        return value
    if value.startswith("/"):  # of a path the end tells more
        return "..." + value[3 - VALUE_WIDTH :]
    return value[: VALUE_WIDTH - 3] + "..."
