"""Random weights of the right shape and dtype, for benchmarks: nothing is read, all is finite.

A value depends on the seed, the tensor's name and shape, and its place in the WHOLE tensor; so a
model gets the same weights on any device and in any number of shards.

Random numbers are drawn once, a prime number of them, and every tensor repeats that stretch from a
start of its own: filling then runs at the speed of copying. Because the length is prime and larger
than any row, no two rows of a matrix are equal.
"""

from __future__ import annotations

import math
import time
import zlib

import torch
from torch import Tensor

from chitu_like.checkpoint.loader import (
    LoadableModel,
    LoadReport,
    finish_loading,
    weight_parameters,
)

PERIOD = 1_048_573  # the largest prime below 2**20


def load_dummy_weights(model: LoadableModel, seed: int) -> LoadReport:
    """Fill every parameter of `model` with numbers that depend on `seed`.

    Matrices are scaled so that a product keeps the size of its input, biases are a hundredth, and
    the weights of norms lie around 1: activations and logits stay finite in every dtype.

    Args:
        model: as for `load_weights`; modified.
        seed: any integer.
    """
    weight_map, parameters = model.weight_map(), weight_parameters(model)
    noise = DummyNoise(seed)
    num_bytes = 0
    start_s = time.perf_counter()
    for target in sorted(weight_map.expected, key=str):
        parameter = parameters[target.parameter]
        layout = parameter.layouts[target.part]
        name = weight_map.source_name(target)
        source = DummyTensor(noise, name, torch.Size(layout.source_shape), parameter.dtype)
        parameter.load(name, source, target.part)
        num_bytes += layout.num_elements * parameter.dtype.itemsize
    load_s = time.perf_counter() - start_s
    return LoadReport(
        num_tensors=len(weight_map.expected),
        num_bytes=num_bytes,
        load_s=load_s,
        after_load_s=finish_loading(model),
    )


class DummyNoise:
    """The stretch of random numbers that every tensor repeats.

    Args:
        seed: what they depend on.
    """

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed % 2**63)
        self._values = torch.randn(PERIOD, generator=generator)
        self._shaped: dict[tuple[float, float, torch.dtype], Tensor] = {}

    def shaped(self, mean: float, deviation: float, dtype: torch.dtype) -> Tensor:
        """[PERIOD] numbers of that mean and standard deviation; do not write."""
        key = (mean, deviation, dtype)
        if key not in self._shaped:
            self._shaped[key] = (self._values * deviation + mean).to(dtype)
        return self._shaped[key]


class DummyTensor:
    """A tensor of a checkpoint that nobody saved; see LazyTensor."""

    def __init__(self, noise: DummyNoise, name: str, shape: torch.Size, dtype: torch.dtype) -> None:
        self.shape = shape
        self.dtype = dtype
        self._start = zlib.crc32(f"{name} {list(shape)}".encode()) % PERIOD
        self._values = noise.shaped(*_mean_and_deviation(name, shape), dtype)

    def __getitem__(self, index: tuple[slice, ...], /) -> Tensor:
        """Only the rows asked for are made."""
        first, *others = index or (slice(None),)
        start, stop, _ = first.indices(self.shape[0])
        row_size = math.prod(self.shape[1:])
        rows = self._stretch(start * row_size, (stop - start) * row_size)
        within = (slice(None), *others)
        return rows.view(stop - start, *self.shape[1:])[within]

    def _stretch(self, start: int, size: int) -> Tensor:
        """Values `start` to `start + size` of the flattened tensor."""
        out = torch.empty(size, dtype=self.dtype)
        at = (self._start + start) % PERIOD
        done = 0
        for values in (self._values[at:], self._values[:at]):
            taken = min(len(values), size - done)
            out[done : done + taken] = values[:taken]
            done += taken
        while done < size:  # a whole number of periods stands there: double it
            taken = min(done, size - done)
            out[done : done + taken] = out[:taken]
            done += taken
        return out


def _mean_and_deviation(name: str, shape: torch.Size) -> tuple[float, float]:
    if len(shape) > 1:
        return 0.0, 1 / math.sqrt(shape[-1])
    # Of the vectors in a model only norms have weights; the others are biases.
    return (1.0, 0.1) if name.endswith("weight") else (0.0, 0.01)
