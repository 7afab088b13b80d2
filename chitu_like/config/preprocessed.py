"""skip_preprocess: is the checkpoint folder one that preprocess_and_save wrote, and for this service?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from chitu_like.config.schema import Dtype, ServeConfig
from chitu_like.core.errors import ConfigError
from chitu_like.core.manifest import Manifest, digest_of_spec, find_manifest, keys_of_layout
from chitu_like.core.model_spec import ModelSpec


def find_preprocessed(config: ServeConfig) -> Manifest | None:
    """The manifest of the folder that weights are read from; None where it is not preprocessed.

    Raises:
        ConfigError: skip_preprocess says otherwise.
        CheckpointError: the manifest is damaged, or the folder half-written.
    """
    folder, asked = config.models.ckpt_dir, config.skip_preprocess
    if folder is None or config.models.load_format != "auto":
        if asked is True:
            raise ConfigError(
                f"skip_preprocess=true but models.load_format={config.models.load_format} reads no "
                "weights: leave one of them out"
            )
        return None
    manifest = find_manifest(Path(folder))
    if asked is True and manifest is None:
        raise ConfigError(
            f"skip_preprocess=true but {folder} was not written by preprocess_and_save (it has no "
            "manifest): use auto, or name the folder that was (models.ckpt_dir)"
        )
    if asked is False and manifest is not None:
        raise ConfigError(
            f"skip_preprocess=false but {folder} was written by preprocess_and_save: use auto, or "
            "name the Hugging Face folder that it was made of (models.ckpt_dir)"
        )
    return manifest


def check_preprocessed(
    config: ServeConfig, spec: ModelSpec, layer_partition: Sequence[int]
) -> None:
    """Compare the folder, where it is preprocessed, with what is to be served from it.

    Args:
        config: what is asked for.
        spec: of the model.
        layer_partition: layers of each stage to be served.

    Raises: as `find_preprocessed`; ConfigError, in one line that says what the folder is for and
        which keys ask for that.
    """
    manifest = find_preprocessed(config)
    if manifest is None:
        return
    folder = config.models.ckpt_dir
    asked = keys_of_layout(config.infer.tp_size, layer_partition)
    if asked != manifest.keys:
        raise ConfigError(
            f"{folder} was written for {manifest.keys}, not for {asked}: set the keys that it was "
            "written for, or preprocess the checkpoint again"
        )
    if config.dtype != "auto":
        require_dtype(manifest, config, config.dtype)
    if config.quant is not None and config.quant != manifest.quant:
        raise ConfigError(
            f"{folder} was written with quant={manifest.quant or 'null'}: leave quant="
            f"{config.quant} out, or preprocess the checkpoint again with it"
        )
    if (spec.architecture, digest_of_spec(spec)) != (manifest.architecture, manifest.spec):
        raise ConfigError(
            f"{folder} was written from {manifest.architecture} of another shape than its "
            "config.json now gives: leave out models.hf_overrides that change weights, or "
            "preprocess the checkpoint again with them"
        )


def require_dtype(manifest: Manifest, config: ServeConfig, dtype: Dtype) -> None:
    """Raise ConfigError unless the weights lie there in that dtype: they are read, not converted."""
    if dtype != manifest.dtype:
        raise ConfigError(
            f"{config.models.ckpt_dir} was written in dtype={manifest.dtype}, to be served in dtype="
            f"{dtype}: set dtype={manifest.dtype}, or preprocess the checkpoint again with dtype="
            f"{dtype}"
        )
