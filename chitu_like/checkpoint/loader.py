"""Stream a checkpoint into a model: every parameter part filled exactly once, nothing left over.

Names and shapes are compared first, from the files' headers alone, so a checkpoint of another model
is refused before a weight is read. A rank of several reads its share only; the rest of the model it
knows by name, so that it still refuses what belongs to none.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import nn

from chitu_like.checkpoint.base import CheckpointReader
from chitu_like.checkpoint.progress import QuietProgress, make_progress
from chitu_like.core.errors import CheckpointError, UnsupportedError
from chitu_like.models.weight_map import IGNORED, Target, WeightMap
from chitu_like.quantization.parameter import LazyTensor, WeightParameter

NAMES_SHOWN = 3  # of missing, left-over or misshapen tensors; the count says how many more

QUANTISED_DTYPES = (
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.int8,
    torch.uint8,
    torch.int32,  # AWQ and GPTQ put eight 4-bit numbers into one
)


class LoadableModel(Protocol):
    """What loading needs of a model; nn.Module gives all but `weight_map`."""

    def weight_map(self) -> WeightMap:
        """Names in its checkpoints to its parameters."""
        ...

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """See nn.Module."""
        ...

    def modules(self) -> Iterable[nn.Module]:
        """See nn.Module."""
        ...


@runtime_checkable
class AfterLoad(Protocol):
    """A module that brings its weights into another order once they are all there."""

    def process_after_load(self) -> None:
        """Called once, after the last parameter is filled."""
        ...


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What a load did.

    Attributes:
        num_tensors: tensors of the checkpoint that this rank took, or took a share of.
        num_bytes: what it took of them, as stored.
        load_s: seconds from the first to the last byte.
        after_load_s: seconds of `process_after_load`.
    """

    num_tensors: int
    num_bytes: int
    load_s: float
    after_load_s: float

    @property
    def bytes_per_s(self) -> float:
        """Speed of reading and converting."""
        return self.num_bytes / max(self.load_s, 1e-9)


class Match(NamedTuple):
    """Where a tensor of the checkpoint goes, and how many bytes of it this rank takes."""

    target: Target
    num_bytes: int


def load_weights(model: LoadableModel, reader: CheckpointReader, *, progress: bool) -> LoadReport:
    """Fill every parameter of `model` from `reader`, converted to the parameter's dtype.

    Args:
        model: its parameters are uninitialised WeightParameters, on any device; modified.
        reader: open; read to its end twice, the first time without the weights.
        progress: show it; for one rank only.

    Raises:
        CheckpointError: tensors are missing, left over, of another shape, or there twice; no
            weight was read then. Also where a file turns out damaged on the way.
        UnsupportedError: the weights are quantised.
    """
    matches = match_tensors(model, reader)
    parameters = weight_parameters(model)
    num_bytes = sum(match.num_bytes for match in matches.values())
    start_s = time.perf_counter()
    with make_progress(num_bytes) if progress else QuietProgress() as shown:
        for name, source in reader:
            if name in matches:
                target = matches[name].target
                parameters[target.parameter].load(name, source, target.part)
                shown.advance(matches[name].num_bytes)
    load_s = time.perf_counter() - start_s
    return LoadReport(
        num_tensors=len(matches),
        num_bytes=num_bytes,
        load_s=load_s,
        after_load_s=finish_loading(model),
    )


def match_tensors(model: LoadableModel, reader: CheckpointReader) -> Mapping[str, Match]:
    """Find the place of every tensor of a checkpoint that has one on this rank; reads headers only.

    Raises: CheckpointError or UnsupportedError as `load_weights`.
    """
    weight_map, parameters = model.weight_map(), weight_parameters(model)
    matches: dict[str, Match] = {}
    filled: dict[Target, str] = {}
    left_over, misshapen, repeated = [], [], []
    for name, source in reader:
        target = weight_map.resolve(name)
        if target is IGNORED:
            continue
        _check_dtype(name, source, reader)
        if target is None:
            left_over.append(name)
        elif target in filled:
            repeated.append(f"{name} and {filled[target]}")
        else:
            layout = parameters[target.parameter].layouts[target.part]
            matches[name] = Match(target, layout.num_elements * source.dtype.itemsize)
            filled[target] = name
            if tuple(source.shape) != layout.source_shape:
                misshapen.append(f"{name} is {list(source.shape)}, not {list(layout.source_shape)}")
    missing = sorted(map(weight_map.source_name, weight_map.expected.difference(filled)))
    faults = {"missing": missing, "left over": left_over, "misshapen": misshapen, "twice": repeated}
    found = [_describe(fault, names) for fault, names in faults.items() if names]
    if found:
        raise CheckpointError(
            f"{reader.ckpt_dir} does not fit its config.json: {'; '.join(found)}: use the weights "
            "and the config.json of one model (models.ckpt_dir)"
        )
    return matches


def weight_parameters(model: LoadableModel) -> dict[str, WeightParameter]:
    """Name -> parameter, all of which know their parts."""
    parameters = {}
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, WeightParameter), f"{name} is no WeightParameter"
        parameters[name] = parameter
    return parameters


def finish_loading(model: LoadableModel) -> float:
    """Call `process_after_load` of every module that has it, once; returns the seconds it took."""
    start_s = time.perf_counter()
    with torch.no_grad():
        for module in list(model.modules()):
            if isinstance(module, AfterLoad):
                module.process_after_load()
    return time.perf_counter() - start_s


def _check_dtype(name: str, source: LazyTensor, reader: CheckpointReader) -> None:
    if source.dtype in QUANTISED_DTYPES:
        raise UnsupportedError(
            f"{reader.ckpt_dir}: tensor {name} is quantised ({source.dtype}), which this version "
            "cannot load: use the bfloat16 or float16 checkpoint (models.ckpt_dir)"
        )


def _describe(fault: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return f"{len(names)} {fault} ({', '.join(names[:NAMES_SHOWN])}{more})"
