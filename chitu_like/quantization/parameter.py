"""WeightParameter: a parameter that takes its own part of a checkpoint's tensor.

A merged parameter (qkv_proj, gate_up_proj) is filled from several tensors, its *parts*; a rank
holds only a shard of each. Both are plain numbers here, known when the layer is built, so ONE
loader serves every model, sharding and format::

    parameter.load(name, source, part)     # source: a lazy tensor of the checkpoint

Example, the q part of a qkv_proj weight with 4 query and 2 key-value heads of 8, hidden 32: its
PartLayout has source_shape (32, 32), and one Copy that takes rows 0:32 and puts them at rows 0:32;
part "k" has source_shape (16, 32) and puts its rows at 32:48.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from chitu_like.core.errors import CheckpointError

Part: TypeAlias = "str | int | None"
"""Names a part of a merged parameter; None is the whole of it as ONE tensor of the checkpoint."""


class LazyTensor(Protocol):
    """A tensor of a checkpoint, read no further than it is sliced. A torch Tensor is one too."""

    @property
    def shape(self) -> torch.Size:
        """Its full shape; costs no reading."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The dtype it is stored in."""
        ...

    def __getitem__(self, index: tuple[slice, ...], /) -> Tensor:
        """The part at `index`."""
        ...


class Shard(NamedTuple):
    """What a rank holds of one dimension: `size` of `full` elements, from `start` on.

    Behind them lie `padding` elements that are in no checkpoint, where all ranks must hold as many.
    """

    full: int
    start: int
    size: int
    padding: int = 0

    @classmethod
    def whole(cls, full: int) -> Shard:
        """All of it."""
        return cls(full, 0, full)

    @classmethod
    def of(cls, full: int, rank: int, num_ranks: int) -> Shard:
        """The `rank`-th of `num_ranks` equal shards; `full` is a multiple of `num_ranks`."""
        assert full % num_ranks == 0, f"{full} is not a multiple of {num_ranks}"
        size = full // num_ranks
        return cls(full, rank * size, size)

    @classmethod
    def padded(cls, full: int, rank: int, num_ranks: int) -> Shard:
        """The `rank`-th of `num_ranks` shards of any `full`, the last ones padded to equal size."""
        num_held = -(-full // num_ranks)
        start = min(rank * num_held, full)
        size = min(num_held, full - start)
        return cls(full, start, size, num_held - size)

    @property
    def num_held(self) -> int:
        """Elements in this rank's memory."""
        return self.size + self.padding


class Copy(NamedTuple):
    """Elements `take` of a checkpoint's tensor go to `put` of the parameter."""

    take: tuple[slice, ...]
    put: tuple[slice, ...]


@dataclass(frozen=True)
class PartLayout:
    """Where one tensor of a checkpoint goes.

    Attributes:
        source_shape: its full shape.
        copies: what this rank takes of it.
    """

    source_shape: tuple[int, ...]
    copies: tuple[Copy, ...]

    @property
    def num_elements(self) -> int:
        """How many elements of the tensor this rank takes."""
        return sum(math.prod(s.stop - s.start for s in copy.put) for copy in self.copies)


class WeightParameter(nn.Parameter):
    """A parameter without gradient that knows its parts.

    Args:
        data: this rank's elements, uninitialised.
        layouts: part -> where it goes; None means the whole parameter as one tensor.
    """

    layouts: Mapping[Part, PartLayout]

    def __new__(cls, data: Tensor, layouts: Mapping[Part, PartLayout]) -> WeightParameter:
        """Make a parameter of `data` without copying it."""
        self = super().__new__(cls, data, requires_grad=False)
        self.layouts = layouts
        return self

    def load(self, name: str, source: LazyTensor, part: Part = None) -> None:
        """Fill one part from `source`, converted to this parameter's dtype.

        Args:
            name: what the checkpoint calls `source`, for messages.
            source: the full tensor; only what this rank holds is read.
            part: which part it is.

        Raises: CheckpointError if the shape of `source` is not that of the part.
        """
        layout = self.layouts[part]
        if tuple(source.shape) != layout.source_shape:
            raise CheckpointError(
                f"{name} has shape {list(source.shape)}, must have {list(layout.source_shape)}: "
                "weights and config.json are of different models (models.ckpt_dir)"
            )
        with torch.no_grad():
            for take, put in layout.copies:
                self.data[put].copy_(source[take])


def stacked_layouts(
    parts: Mapping[Part, Shard], rest: tuple[Shard, ...] = ()
) -> tuple[tuple[int, ...], dict[Part, PartLayout]]:
    """Shape and layouts of a parameter that stacks parts along its first dimension.

    Args:
        parts: in stacking order; {None: shard} for a parameter that is not merged.
        rest: the other dimensions.

    Returns: the parameter's shape on this rank, and its layouts: every part alone, and under None
        all of them already stacked in one tensor, as some checkpoints have it.
    """
    tail_take = tuple(slice(s.start, s.start + s.size) for s in rest)
    tail_put = tuple(slice(0, s.size) for s in rest)
    tail_full = tuple(s.full for s in rest)
    puts = list(accumulate((s.num_held for s in parts.values()), initial=0))
    origins = list(accumulate((s.full for s in parts.values()), initial=0))

    def copy(shard: Shard, origin: int, put: int) -> Copy:
        start = origin + shard.start
        return Copy(
            (slice(start, start + shard.size), *tail_take),
            (slice(put, put + shard.size), *tail_put),
        )

    layouts = {
        part: PartLayout((shard.full, *tail_full), (copy(shard, 0, put),))
        for (part, shard), put in zip(parts.items(), puts, strict=False)
    }
    layouts[None] = PartLayout(
        (origins[-1], *tail_full),
        tuple(map(copy, parts.values(), origins, puts)),
    )
    return (puts[-1], *(s.num_held for s in rest)), layouts
