"""The checks of `chitu-like doctor`: each finds out one thing that a start would stumble over."""

from __future__ import annotations

import math
import os
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from chitu_like.checkpoint.files import WeightFiles, WeightFormat, find_weight_files
from chitu_like.checkpoint.loader import match_tensors
from chitu_like.checkpoint.preprocessed import check_rank_file
from chitu_like.checkpoint.reader import open_checkpoint
from chitu_like.config.device_facts import GIB, DeviceFacts
from chitu_like.config.schema import ServeConfig
from chitu_like.core.errors import ChituError, ConfigError
from chitu_like.core.manifest import find_manifest
from chitu_like.layout import describe_layout
from chitu_like.model_files import ModelFiles, load_text
from chitu_like.models.build import build_model
from chitu_like.scheduler.policy import Ordering
from chitu_like.worker.options import RunnerOptions, make_backend


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a check found.

    Attributes:
        name: of the check.
        detail: what there is, or what is wrong and how to mend it.
        is_fault: the service could not start like this.
    """

    name: str
    detail: str
    is_fault: bool = False


def check_up(
    config: ServeConfig, files: ModelFiles, options: RunnerOptions, facts: DeviceFacts
) -> list[Finding]:
    """Run every check; none loads a weight.

    Args:
        config: of the service.
        files: of the model.
        options: of a rank that holds all of the model.
        facts: of this machine.
    """
    return [
        _look("architecture", lambda: _architecture(options)),
        _look("ranks", lambda: _ranks(config, options, facts)),
        _look("weights", lambda: _weights(config, options)),
        _look("tokenizer", lambda: _tokenizer(files)),
        _look("scheduler", lambda: _scheduler(config)),
        _look("port", lambda: _port(config.serve.host, config.serve.port)),
        _look("log_dir", lambda: _log_dir(config.log_dir)),
    ]


def _look(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name=name, detail=check())
    except ChituError as error:
        return Finding(name=name, detail=str(error), is_fault=True)


def _architecture(options: RunnerOptions) -> str:
    spec = options.spec
    make_backend(options)  # raises where the backend cannot serve the model
    billions = spec.num_parameters() / 1e9
    size = f"{billions:.2f} B" if billions >= 0.1 else f"{billions * 1e3:.1f} M"
    return (
        f"{spec.architecture}: {spec.num_layers} layers, hidden size {spec.hidden_size}, "
        f"{spec.num_heads} heads over {spec.num_kv_heads} KV heads, vocabulary of "
        f"{spec.vocab_size}, {size} parameters"
    )


def _ranks(config: ServeConfig, options: RunnerOptions, facts: DeviceFacts) -> str:
    """How many there are, what each holds, and whether this machine has room for all."""
    num_ranks = config.num_ranks
    if num_ranks == 1:
        return "1, which holds the whole model"
    found = f"{num_ranks}: {describe_layout(config, options.spec)}"
    if facts.device == "cpu":
        return f"{found}, sharing the cores and the memory of this machine"
    num_nodes = math.ceil(num_ranks / facts.num_devices)
    nodes = "on this node" if num_nodes == 1 else f"on {num_nodes} nodes like this one"
    return f"{found}, a GPU each: {nodes}"


def _weights(config: ServeConfig, options: RunnerOptions) -> str:
    models = config.models
    if models.ckpt_dir is None or models.load_format != "auto":
        return f"none are read (models.load_format={models.load_format})"
    folder = Path(models.ckpt_dir)
    if (manifest := find_manifest(folder)) is not None:
        for rank in manifest.ranks:
            check_rank_file(folder, rank)
        gib = sum(rank.num_bytes for rank in manifest.ranks) / GIB
        return (
            f"{len(manifest.ranks)} rank file(s), {gib:.2f} GiB, preprocessed for {manifest.keys}"
        )
    found = find_weight_files(folder)
    size = f"{len(found.files)} file(s), {found.num_bytes / GIB:.2f} GiB"
    if found.format is not WeightFormat.SAFETENSORS:
        # Only safetensors has its names in front; the others are compared when they are loaded.
        return f"{size}, of {found.format.name.lower()} format: not looked into"
    return f"{size}, {_compare_headers(folder, found, options)}"


def _compare_headers(folder: Path, found: WeightFiles, options: RunnerOptions) -> str:
    """Compare every tensor's name and shape with the model's; reads headers only.

    Raises: CheckpointError as loading would.
    """
    meta = torch.device("meta")  # shapes without memory
    model = build_model(options.spec, make_backend(options), options.torch_dtype, meta)
    with open_checkpoint(folder) as reader:
        num_tensors = len(match_tensors(model, reader))
        dtypes = Counter(str(tensor.dtype).removeprefix("torch.") for _, tensor in reader)
    counted = ", ".join(f"{number} {dtype}" for dtype, number in dtypes.most_common())
    return f"{num_tensors} tensors that the model wants, none missing ({counted})"


def _tokenizer(files: ModelFiles) -> str:
    text = load_text(files.tokenizer_dir)
    if text is None:
        return "none: token ids in and out"
    sample = "Will it fit?"
    num_tokens = len(text.tokenizer.encode(sample, add_special_tokens=False))
    chat = "a chat template" if text.chat_template else "no chat template: completions only"
    return f"{files.tokenizer_dir}: {sample!r} is {num_tokens} tokens, {chat}"


def _scheduler(config: ServeConfig) -> str:
    Ordering(config.scheduler.type)
    return config.scheduler.type


def _port(host: str, port: int) -> str:
    if port == 0:
        return "any free one"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            # As the server does: a connection that is only waiting out its end holds no port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ConfigError(
            f"{host}:{port} cannot be listened on: {error.strerror}: use another serve.port or "
            "serve.host"
        ) from None
    return f"{host}:{port} is free"


def _log_dir(log_dir: str) -> str:
    path = Path(log_dir).expanduser().absolute()
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"log_dir={log_dir}: {there} is not writable: set another log_dir")
    return str(path)
