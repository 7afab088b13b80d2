from pathlib import Path

import pytest

from chitu_like.config.load import load_config
from chitu_like.config.schema import ServeConfig
from chitu_like.config.secrets import secrets_of, with_secrets
from chitu_like.core.errors import ConfigError


def keys(*overrides: str, **environ: str) -> tuple[tuple[str, ...], str | None]:
    own = ("models=auto", "models.ckpt_dir=/x")
    serve = load_config((*own, *overrides), environ=environ).serve
    return serve.api_keys, serve.admin_api_key


def test_keys_come_from_the_command_line_or_the_environment() -> None:
    assert keys() == ((), None)
    assert keys("serve.api_keys=[a,b]", "serve.admin_api_key=c") == (("a", "b"), "c")
    environ = {"CHITU_LIKE_API_KEYS": "x, y", "CHITU_LIKE_ADMIN_API_KEY": "z"}
    assert keys(**environ) == (("x", "y"), "z")
    assert keys("serve.api_keys=a", **environ) == (("a",), "z")


def test_keys_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("one\n\n  two \n")
    assert keys(f"serve.api_keys=[file:{path},three]") == (("one", "two", "three"), None)
    assert keys(CHITU_LIKE_API_KEYS=f"file:{path}") == (("one", "two"), None)
    with pytest.raises(ConfigError, match="the file must hold exactly one key"):
        keys(f"serve.admin_api_key=file:{path}")
    path.write_text("admin\n")
    assert keys(f"serve.admin_api_key=file:{path}") == ((), "admin")


def test_a_slip_never_opens_the_service(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^serve\.api_keys=file:/no/file: cannot read the file: No"
    ):
        keys("serve.api_keys=file:/no/file")
    empty = tmp_path / "empty"
    empty.write_text("\n")
    with pytest.raises(ConfigError, match=r"the file holds no key; write one a line$"):
        keys(f"serve.api_keys=file:{empty}")
    with pytest.raises(ConfigError, match=r"^CHITU_LIKE_API_KEYS holds no key"):
        keys(CHITU_LIKE_API_KEYS=" ,")
    with pytest.raises(ConfigError, match=r"^serve\.api_keys=\[\*\*\*\]|^serve\.api_keys=\*\*\*"):
        keys("serve.api_keys=['']")
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"it is not UTF-8 text$"):
        keys(f"serve.api_keys=file:{binary}")


def test_every_secret_is_known_to_the_log() -> None:
    section = with_secrets(ServeConfig().serve, {"CHITU_LIKE_API_KEYS": "a,b"})
    assert secrets_of(ServeConfig(serve=section)) == ("a", "b")
