"""Compose the configuration with Hydra and hand it on typed and frozen; nobody else sees Hydra.

`CONFIG_NAME` (or the argument `config_name`) replaces the top file: a name in the folder of values,
or a path anywhere, whose own folder may hold further models/.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobRuntime
from hydra.errors import HydraException
from hydra.version import VersionBase
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from chitu_like.config.architecture import check_model_source
from chitu_like.config.files import (
    EMBEDDED_MODEL,
    expand_model_path,
    find_model_entry,
    find_top_file,
    values_dir,
)
from chitu_like.config.keys import ALIASES
from chitu_like.config.overrides import Override, parse_overrides, quote
from chitu_like.config.planning import PlanningConfig
from chitu_like.config.schema import ServeConfig
from chitu_like.config.secrets import with_secrets
from chitu_like.config.support import check_supported
from chitu_like.config.tree import build
from chitu_like.core.errors import ConfigError

CONFIG_NAME_VARIABLE = "CONFIG_NAME"
DEFAULT_CONFIG_NAME = "serve"
PLANNING_CONFIG_NAME = "plan"
# What Hydra lets through for a file that is unreadable, of another shape, or names itself.
OTHER_FAULTS = (OSError, ValueError, TypeError, RecursionError)

Tree = dict[str, object]


def load_config(
    overrides: Sequence[str],
    config_name: str | None = None,
    environ: Mapping[str, str] = os.environ,
) -> ServeConfig:
    """Compose, check and freeze the configuration; `auto` values stay for `resolve`.

    Args:
        overrides: KEY=VALUE texts as on the command line.
        config_name: replaces the top file; None: the environment's CONFIG_NAME, else serve.
        environ: the environment (CONFIG_NAME and the service's keys are read from it).

    Raises:
        ConfigError: an unknown key, a wrong type or an illegal combination, in one line.
        UnsupportedError: a sound value that this version cannot honour.
    """
    given = parse_overrides(overrides)
    name = config_name or environ.get(CONFIG_NAME_VARIABLE) or DEFAULT_CONFIG_NAME
    top = find_top_file(name, values_dir())
    composed, entry = _compose(top, given)
    tree = _with_name(composed, entry, top)
    _rename_aliases(tree, {override.name for override in given})
    _expand_paths(tree)
    config = build(ServeConfig, tree)
    config = replace(config, serve=with_secrets(config.serve, environ))
    _check_embedded(config)
    check_model_source(config.models)
    check_supported(config)
    return config


def load_planning(
    overrides: Sequence[str],
    config_name: str | None = None,
    environ: Mapping[str, str] = os.environ,
) -> PlanningConfig:
    """Compose, check and freeze what `chitu-like plan` and `chitu-like simulate` are told.

    Args:
        overrides: KEY=VALUE texts as on the command line.
        config_name: replaces the top file; None: the environment's CONFIG_NAME, else plan.
        environ: the environment; only CONFIG_NAME is read from it.

    Raises: ConfigError for an unknown key, a wrong type or an illegal combination, in one line.
    """
    given = parse_overrides(overrides, PlanningConfig)
    name = config_name or environ.get(CONFIG_NAME_VARIABLE) or PLANNING_CONFIG_NAME
    top = find_top_file(name, values_dir())
    tree, entry = _compose(top, given)
    if entry is not None:
        raise ConfigError(
            f"{top} is made for serving: let it begin with `defaults: [plan, _self_]` (CONFIG_NAME)"
        )
    _rename_aliases(tree, {override.name for override in given})
    return build(PlanningConfig, tree, PlanningConfig)


def _compose(top: Path, given: Sequence[Override]) -> tuple[Tree, str | None]:
    """Compose `top` with `given` into plain values; beside them, which entry of models/ it chose."""
    values = values_dir()
    texts = [_with_entry(override, (top.parent, values)).to_hydra() for override in given]
    if top.parent != values:
        texts.append(f"hydra.searchpath=[{quote(f'file://{values}')}]")
    try:
        with _own_hydra(), initialize_config_dir(str(top.parent), version_base="1.3"):
            composed = compose(top.stem, texts, return_hydra_config=True)
            return _plain(composed)
    except (HydraException, OmegaConfBaseException, YAMLError, *OTHER_FAULTS) as error:
        if "Could not override 'models'" in str(error):
            raise _no_model(top) from None
        raise ConfigError(f"{top}: {_one_line(error)}") from None


def _with_entry(override: Override, folders: tuple[Path, ...]) -> Override:
    if override.name != "models":
        return override
    return replace(override, value=find_model_entry(str(override.value), folders))


def _plain(composed: DictConfig) -> tuple[Tree, str | None]:
    entry = composed.hydra.runtime.choices.get("models")
    OmegaConf.set_struct(composed, False)
    del composed["hydra"]
    plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict), "Hydra composes mappings"
    return {str(name): value for name, value in plain.items()}, entry


def _with_name(tree: Tree, entry: str | None, top: Path) -> Tree:
    """The same tree, its models.name saying which entry was chosen."""
    models = tree.get("models")
    if entry is None or not isinstance(models, dict):
        raise _no_model(top)
    return {**tree, "models": {**models, "name": entry}}


def _no_model(top: Path) -> ConfigError:
    return ConfigError(
        f"{top} chooses no model: let it begin with `defaults: [serve, _self_]`, or with "
        "`defaults: [models: NAME, _self_]`"
    )


def _one_line(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "its defaults lead back to itself; leave its own name out of them"
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:297] + "..."


@contextmanager
def _own_hydra() -> Iterator[None]:
    """Compose beside whatever Hydra program this process may be; its state is put back after."""
    owned: tuple[type, ...] = (GlobalHydra, HydraConfig, JobRuntime, VersionBase)
    instances = Singleton._instances
    saved = {kind: instances.pop(kind) for kind in owned if kind in instances}
    try:
        yield
    finally:
        for kind in owned:
            instances.pop(kind, None)
        instances.update(saved)


def _rename_aliases(tree: Tree, given: set[str]) -> None:
    """Carry aliases in files over to their keys; the command line and a given key win or clash."""
    for alias, name in ALIASES.items():
        section, _, old = alias.partition(".")
        values = tree.get(section)
        if not isinstance(values, dict) or old not in values:
            continue
        value, new = values.pop(old), name.partition(".")[2]
        if name in given:
            continue
        if values.get(new, "auto") not in ("auto", value):
            raise ConfigError(f"{alias}={value} and {name}={values[new]} are one key: give one")
        values[new] = value


def _expand_paths(tree: Tree) -> None:
    models = tree["models"]
    for values, prefix, name in (
        (models, "models.", "ckpt_dir"),
        (models, "models.", "tokenizer_path"),
        (tree, "", "quant_ckpt_dir"),
    ):
        if isinstance(values, dict) and isinstance(path := values.get(name), str) and path:
            values[name] = expand_model_path(prefix + name, path)


def _check_embedded(config: ServeConfig) -> None:
    """Refuse to serve somebody's own folder under the name of the embedded model."""
    models = config.models
    if models.name != EMBEDDED_MODEL or models.ckpt_dir is None:
        return
    if models.ckpt_dir != expand_model_path("models.ckpt_dir", f"package:{EMBEDDED_MODEL}"):
        raise ConfigError(
            f"models.ckpt_dir={models.ckpt_dir} but models={EMBEDDED_MODEL}, the embedded model: "
            "add models=auto"
        )
