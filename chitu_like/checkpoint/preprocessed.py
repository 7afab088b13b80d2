"""Load a model from any folder: one that preprocess_and_save wrote, or a Hugging Face checkpoint.

Of a preprocessed folder a rank opens its own file and no other, compares names, shapes and dtypes,
and reads it in one run straight into its parameters.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from chitu_like.checkpoint.loader import (
    LoadableModel,
    LoadReport,
    finish_loading,
    load_weights,
    weight_parameters,
)
from chitu_like.checkpoint.progress import QuietProgress, make_progress
from chitu_like.checkpoint.rank_file import digest_of, open_rank_file, read_rank_file
from chitu_like.checkpoint.reader import open_checkpoint
from chitu_like.core.errors import CheckpointError
from chitu_like.core.manifest import MANIFEST_FILE, Manifest, RankFile, find_manifest
from chitu_like.distributed.parallel_context import ParallelContext
from chitu_like.models.weight_map import Target
from chitu_like.quantization.parameter import LazyTensor


def load_checkpoint(
    model: LoadableModel, ckpt_dir: Path, parallel: ParallelContext, *, progress: bool
) -> LoadReport:
    """Fill every parameter of `model` from a folder, whichever kind it is.

    Args:
        model: as for `load_weights`, built for `parallel`; modified.
        ckpt_dir: the folder.
        parallel: this rank's place.
        progress: show it; for one rank only.

    Raises: CheckpointError or UnsupportedError if the folder does not hold this model, or not for
        this rank.
    """
    manifest = find_manifest(ckpt_dir)
    if manifest is None:
        with open_checkpoint(ckpt_dir) as reader:
            return load_weights(model, reader, progress=progress)
    return load_preprocessed(model, ckpt_dir, manifest, parallel, progress=progress)


def load_preprocessed(
    model: LoadableModel,
    folder: Path,
    manifest: Manifest,
    parallel: ParallelContext,
    *,
    progress: bool,
) -> LoadReport:
    """The same for a folder with a manifest; reads this rank's file alone.

    Raises: CheckpointError if the manifest is for other ranks, or the file is absent, damaged, or
        not what manifest and model say; no weight was read then.
    """
    rank = rank_of(manifest, folder, parallel)
    parameters = weight_parameters(model)
    stored = check_rank_file(folder, rank)
    _check_fit(model, manifest, folder / rank.file, stored)
    num_bytes = sum(parameters[name].nbytes for name in stored)
    start_s = time.perf_counter()
    with make_progress(num_bytes) if progress else QuietProgress() as shown:
        ordered = {name: parameters[name].data for name in stored}
        read_rank_file(folder / rank.file, ordered, shown.advance)
    return LoadReport(
        num_tensors=len(stored),
        num_bytes=num_bytes,
        load_s=time.perf_counter() - start_s,
        after_load_s=finish_loading(model),
    )


def rank_of(manifest: Manifest, folder: Path, parallel: ParallelContext) -> RankFile:
    """The entry of this rank.

    Raises: CheckpointError if the folder was written for other ranks.
    """
    sizes = (parallel.tp_size, parallel.pp_size)
    layers = parallel.layers
    if sizes != (manifest.tp_size, manifest.pp_size) or (
        layers is not None and layers != manifest.layers(parallel.pp_rank)
    ):
        here = f" with layers {layers.start} to {layers.stop - 1} here" if layers else ""
        raise CheckpointError(
            f"{folder} was written for {manifest.keys}, not for infer.tp_size={sizes[0]} "
            f"infer.pp_size={sizes[1]}{here}: set those keys, or preprocess the checkpoint again"
        )
    return manifest.ranks[manifest.places().index((parallel.pp_rank, parallel.tp_rank))]


def check_rank_file(folder: Path, rank: RankFile) -> dict[str, LazyTensor]:
    """Names, shapes and dtypes in a rank's file, in the order of its bytes; reads no weight.

    Raises: CheckpointError, naming the file, if it is not the one that the manifest lists.
    """
    path = folder / rank.file
    again = "copy it again, or preprocess the checkpoint again (models.ckpt_dir)"
    if not path.is_file():
        raise CheckpointError(f"{path} is missing but {MANIFEST_FILE} lists it: {again}")
    if path.stat().st_size != rank.num_bytes:
        raise CheckpointError(
            f"{path} has {path.stat().st_size} bytes but {MANIFEST_FILE} says {rank.num_bytes}: "
            f"it is truncated or damaged: {again}"
        )
    stored = open_rank_file(path)
    if digest_of(stored) != rank.digest:
        raise CheckpointError(
            f"{path} holds other tensors than {MANIFEST_FILE} lists (their names, shapes or dtypes "
            f"differ): {again}"
        )
    return stored


def merged_modules(model: LoadableModel) -> dict[str, tuple[str, ...]]:
    """Module of the model -> modules of its checkpoints that are stacked in it, in their order."""
    weight_map = model.weight_map()
    merged = {}
    for name, parameter in weight_parameters(model).items():
        targets = [Target(name, part) for part in parameter.layouts]
        sources = [weight_map.source_name(t) for t in targets if t in weight_map.expected]
        if len(sources) > 1:
            merged[_module(name)] = tuple(map(_module, sources))
    return merged


def _check_fit(
    model: LoadableModel, manifest: Manifest, path: Path, stored: Mapping[str, LazyTensor]
) -> None:
    """Raise CheckpointError unless the file holds the model's parameters as the model has them."""
    wanted = {name: _show(p) for name, p in weight_parameters(model).items()}
    held = {name: _show(tensor) for name, tensor in stored.items()}
    if odd := sorted(dict(wanted.items() ^ held.items())):
        name = odd[0]
        raise CheckpointError(
            f"{path} does not fit the model: {name} is {held.get(name, 'not there')}, must be "
            f"{wanted.get(name, 'absent')} ({len(odd)} tensor(s) differ; the folder was written with "
            f"dtype={manifest.dtype} for {manifest.architecture}): set the model and dtype that it "
            "was written with, or preprocess the checkpoint again"
        )
    merged = merged_modules(model)
    if merged != manifest.merged:
        raise CheckpointError(
            f"{path} has its parameters merged as {manifest.merged}, this version merges {merged}: "
            "preprocess the checkpoint again"
        )


def _show(tensor: LazyTensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _module(name: str) -> str:
    """'layers.3.mlp.down_proj.weight' -> 'down_proj'."""
    return name.split(".")[-2]
