"""The architecture of the chosen model in config.json's own terms.

A checkpoint's config.json is the source; without one, the entry of config/models/ is, or else the
params.json of Meta's original/ layout; what models.hf_overrides says wins over all.
"""

import difflib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from chitu_like.config.schema import ModelsConfig
from chitu_like.config.section import JsonValue
from chitu_like.core import meta_config
from chitu_like.core.config_reader import ConfigReader
from chitu_like.core.errors import CheckpointError, ConfigError
from chitu_like.core.model_spec import ModelSpec

MAX_FILE_BYTES = 16 << 20
# Newer and older names of one key. Transformers 5 also moved the last two into rope_parameters.
SPELLINGS = (("dtype", "torch_dtype"), ("rope_parameters", "rope_scaling"), ("rope_type", "type"))
ROPE_KEYS = ("rope_theta", "partial_rotary_factor")


def read_model_spec(models: ModelsConfig) -> ModelSpec:
    """The shape of the chosen model.

    Raises: as `read_hf_config`; CheckpointError or UnsupportedError for what it says; ConfigError
        for an override that changes nothing.
    """
    source = models.name if models.ckpt_dir is None else f"{models.ckpt_dir}/config.json"
    config = _Noted(read_hf_config(models))
    spec = ModelSpec.from_hf_config(config, source)
    for name in models.hf_overrides:
        if name not in config.asked_for:
            close = difflib.get_close_matches(name, config.asked_for, n=1)
            hint = f"did you mean {close[0]}?" if close else "leave it out"
            raise ConfigError(
                f"models.hf_overrides.{name} changes nothing for {spec.architecture}: {hint}"
            )
    return spec


class _Noted(Mapping[str, JsonValue]):
    """A config that notes which keys are asked for, there or not."""

    def __init__(self, values: Mapping[str, JsonValue]) -> None:
        self._values = values
        self.asked_for: set[str] = set()

    def __getitem__(self, name: str) -> JsonValue:
        self.asked_for.add(name)
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def read_hf_config(models: ModelsConfig) -> dict[str, JsonValue]:
    """Read or compose the model's config.json.

    Raises:
        ConfigError: the model is not sufficiently named, or the entry and the checkpoint are of
            different model types.
        CheckpointError: ckpt_dir is no folder, or its config.json no JSON object.
    """
    check_model_source(models)
    base: Mapping[str, JsonValue] = models.hf_config
    if models.ckpt_dir is not None:
        folder = Path(models.ckpt_dir)
        found = _read_config_json(folder)
        if found is not None:
            _check_same_type(models, found)
        base = found or base or _read_params_json(folder)
    if not base:
        raise CheckpointError(
            f"models.ckpt_dir={models.ckpt_dir} holds no config.json, so models={models.name} "
            "cannot tell what it is: name the model, e.g. models=llama-3-8b"
        )
    return _merge(_respelled(base, models.hf_overrides), models.hf_overrides)


def check_model_source(models: ModelsConfig) -> None:
    """Raise ConfigError unless the configuration says where architecture and weights come from."""
    if models.ckpt_dir is not None:
        return
    if not models.hf_config:
        raise ConfigError(
            f"models={models.name} needs a folder: set models.ckpt_dir=<Hugging Face folder>"
        )
    if models.load_format == "auto":
        raise ConfigError(
            f"models={models.name} brings no weights: set models.ckpt_dir=<Hugging Face folder>, "
            "or models.load_format=dummy for random weights"
        )


def _read_config_json(folder: Path) -> dict[str, JsonValue] | None:
    if not folder.is_dir():
        fault = "is not a folder" if folder.exists() else "does not exist"
        raise CheckpointError(f"models.ckpt_dir={folder} {fault}: give a Hugging Face folder")
    path = folder / "config.json"
    if not path.is_file():
        return None
    try:
        with path.open(encoding="utf-8") as file:
            config = json.loads(file.read(MAX_FILE_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {_first_line(error)}") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds no JSON object: copy it again from the model's source")
    return config


def _read_params_json(folder: Path) -> Mapping[str, JsonValue]:
    for path in (folder / "params.json", folder / "original" / "params.json"):
        if path.is_file():
            converted = meta_config.to_hf_config(ConfigReader.from_file(path))
            return json.loads(json.dumps(converted))  # type: ignore[no-any-return]
    return {}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _check_same_type(models: ModelsConfig, found: Mapping[str, JsonValue]) -> None:
    named, held = models.hf_config.get("model_type"), found.get("model_type")
    if named is not None and held is not None and named != held:
        raise ConfigError(
            f"models={models.name} is of type {named} but models.ckpt_dir={models.ckpt_dir} holds "
            f"a model of type {held}: use models=auto or the right folder"
        )


def _respelled(
    base: Mapping[str, JsonValue], over: Mapping[str, JsonValue]
) -> dict[str, JsonValue]:
    """`base` with its keys under the names that `over` uses: else the newer name would win."""
    found = dict(base)
    for names in SPELLINGS:
        for name, other in (names, names[::-1]):
            if name in over and other not in over and other in found:
                held = found.pop(other)
                found[name] = held if found.get(name) is None else found[name]
    for name in ("rope_parameters", "rope_scaling"):
        rope, wanted = found.get(name), over.get(name)
        if isinstance(rope, dict) and (name in over or not over.keys().isdisjoint(ROPE_KEYS)):
            rope = _respelled(rope, wanted if isinstance(wanted, dict) else {})
            lifted = {key: rope.pop(key) for key in ROPE_KEYS if key in rope}
            found = {**found, **lifted, name: rope}
    return found


def _merge(base: Mapping[str, JsonValue], over: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    merged = dict(base)
    for name, value in over.items():
        held = merged.get(name)
        is_both = isinstance(held, dict) and isinstance(value, dict)
        merged[name] = _merge(held, value) if is_both else value  # type: ignore[arg-type]
    return merged
