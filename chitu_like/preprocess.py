"""From a configuration to a preprocessed folder: each process loads and writes some ranks' shards.

A shard is made on the CPU by the very loader that serves, so what is saved is what would be served:
tensors cut for infer.tp_size and infer.pp_size, QKV and gate-up merged, in the dtype asked for. The
memory it takes is that of one rank's shard.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from chitu_like.checkpoint.dummy import load_dummy_weights
from chitu_like.checkpoint.files import find_weight_files
from chitu_like.checkpoint.loader import load_weights, weight_parameters
from chitu_like.checkpoint.preprocess import FolderWriter, Receipt, WithoutModules
from chitu_like.checkpoint.preprocessed import merged_modules
from chitu_like.checkpoint.progress import QuietProgress, make_progress
from chitu_like.checkpoint.reader import open_checkpoint
from chitu_like.cluster.placement import InstancePlacement
from chitu_like.config import generation
from chitu_like.config.architecture import read_hf_config, read_model_spec
from chitu_like.config.parallel import check_layout
from chitu_like.config.schema import ModelsConfig, ServeConfig
from chitu_like.core.errors import CheckpointError, ConfigError
from chitu_like.core.manifest import Plan, digest_of_spec, find_manifest
from chitu_like.core.model_spec import ModelSpec
from chitu_like.distributed.parallel_context import ParallelContext
from chitu_like.layout import placement_of
from chitu_like.models.base import Model
from chitu_like.models.build import build_model
from chitu_like.server.tokenizer_files import TOKENIZER_FILES
from chitu_like.worker.options import RunnerOptions, make_backend


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What is to be written, and where.

    Attributes:
        config: as loaded.
        spec: of the model.
        placement: the ranks that the files are for.
        writer: of the folder.
    """

    config: ServeConfig
    spec: ModelSpec
    placement: InstancePlacement
    writer: FolderWriter

    @classmethod
    def plan(cls, config: ServeConfig, folder: Path) -> Preprocessing:
        """Decide what will be written; touches nothing yet.

        Raises: ChituError if the model cannot be cut as asked, or its checkpoint is no source.
        """
        source = _digest_of_source(config)
        spec = read_model_spec(config.models)
        check_layout(config, spec)
        placement = placement_of(config, spec).instances[0]
        dtype = spec.dtype if config.dtype == "auto" else config.dtype
        first = ParallelContext.detached(placement, pp_rank=0, tp_rank=0)
        plan = Plan(
            architecture=spec.architecture,
            spec=digest_of_spec(spec),
            source=source,
            tp_size=config.infer.tp_size,
            layer_partition=tuple(len(stage.layers) for stage in placement.stages),
            merged=merged_modules(_build(spec, dtype, first, torch.device("meta"))),
            dtype=dtype,
        )
        return cls(config=config, spec=spec, placement=placement, writer=FolderWriter(folder, plan))

    def add_files(self) -> list[str]:
        """Write what a service needs beside the weights; returns the names.

        config.json is written as the configuration has it, overrides and all.
        """
        models, writer = self.config.models, self.writer
        config_json = json.dumps(read_hf_config(models), indent=2) + "\n"
        writer.add_file("config.json", config_json.encode())
        names = ["config.json"]
        for path, name in _files_beside(models):
            writer.add_file(name, path.read_bytes())
            names.append(name)
        return names

    def write_rank(self, pp_rank: int, tp_rank: int, *, progress: bool) -> Receipt:
        """Load the shard of one rank and write it, unless a run that was cut short has done so.

        Raises: CheckpointError or UnsupportedError as loading does; CheckpointError if the folder
            cannot be written.
        """
        writer = self.writer
        if (receipt := writer.receipt(pp_rank, tp_rank)) is not None:
            return receipt
        start_s = time.perf_counter()
        parallel = ParallelContext.detached(self.placement, pp_rank=pp_rank, tp_rank=tp_rank)
        model = _build(self.spec, writer.plan.dtype, parallel, torch.device("cpu"))
        self._load(model, progress=progress)
        tensors = {name: p.data for name, p in weight_parameters(model).items()}
        total = sum(tensor.nbytes for tensor in tensors.values())
        what = f"writing rank {pp_rank}-{tp_rank}"
        with make_progress(total, what) if progress else QuietProgress() as shown:
            return writer.write(pp_rank, tp_rank, tensors, shown.advance, start_s=start_s)

    def _load(self, model: Model, *, progress: bool) -> None:
        """Fill the parameters, and leave them in the order in which they are loaded."""
        models = self.config.models
        if models.load_format == "dummy":
            load_dummy_weights(WithoutModules(model), self.config.infer.seed)
            return
        with open_checkpoint(_folder(models)) as reader:
            load_weights(WithoutModules(model), reader, progress=progress)


def _build(spec: ModelSpec, dtype: str, parallel: ParallelContext, device: torch.device) -> Model:
    # The reference backend serves every model; nothing is computed with it.
    options = RunnerOptions(
        spec=spec,
        dtype=dtype,
        device="cpu",
        max_seq_len=spec.max_seq_len,
        attn_type="ref",
        parallel=parallel,
    )
    return build_model(
        spec, make_backend(options), options.torch_dtype, device, parallel=parallel, op_impl="torch"
    )


def _digest_of_source(config: ServeConfig) -> str:
    """Equal as long as the weights that are read are the same files, unchanged.

    Raises: ConfigError or CheckpointError if there is nothing to preprocess.
    """
    models = config.models
    if config.skip_preprocess is True:
        raise ConfigError("skip_preprocess=true: to write a preprocessed folder, leave it out")
    if models.load_format == "none":
        raise ConfigError("models.load_format=none: there are no weights to preprocess")
    if models.load_format == "dummy":
        return f"dummy weights of infer.seed={config.infer.seed}"
    folder = _folder(models)
    if find_manifest(folder) is not None:
        raise CheckpointError(
            f"{folder} is preprocessed already: name the Hugging Face folder that it was made of "
            "(models.ckpt_dir)"
        )
    stats = [(path.name, path.stat()) for path in find_weight_files(folder).files]
    lines = [f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats]
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()


def _files_beside(models: ModelsConfig) -> list[tuple[Path, str]]:
    """(file, its name in the folder) of generation_config.json and the tokenizer, as far as there."""
    wanted = [(models.ckpt_dir, generation.FILE_NAME)]
    wanted += [(models.tokenizer_dir, name) for name in TOKENIZER_FILES]
    found = [(Path(folder) / name, name) for folder, name in wanted if folder is not None]
    return [(path, name) for path, name in found if path.is_file()]


def _folder(models: ModelsConfig) -> Path:
    assert models.ckpt_dir is not None, "the configuration names a folder where weights are read"
    return Path(models.ckpt_dir)
