"""Placement: which rank holds which layers of which instance; the one place where ranks are counted.

World ranks run through instances first, then stages, then the tensor-parallel ranks of a stage, so
that a tensor-parallel group, which talks most, is made of neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import accumulate, chain


class Role(Enum):
    """What an instance does with a request."""

    UNIFIED = "unified"
    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Consecutive layers on one tensor-parallel group.

    Attributes:
        ranks: world ranks, by their place in the group.
        layers: GLOBAL indices.
    """

    ranks: tuple[int, ...]
    layers: range


@dataclass(frozen=True, kw_only=True)
class InstancePlacement:
    """Stages that hold one whole model.

    Attributes:
        stages: from the embedding to the head; all have as many ranks.
        role: what it does.
    """

    stages: tuple[Stage, ...]
    role: Role = Role.UNIFIED

    @property
    def ranks(self) -> tuple[int, ...]:
        """World ranks, stage by stage."""
        return tuple(chain.from_iterable(stage.ranks for stage in self.stages))

    @property
    def leader(self) -> int:
        """The world rank that runs the engine: the first of the first stage."""
        return self.stages[0].ranks[0]


@dataclass(frozen=True, kw_only=True)
class Seat:
    """Where one world rank sits.

    Attributes:
        instance: index of its instance.
        pp_rank: index of its stage there.
        tp_rank: its place in the stage's group.
    """

    instance: int
    pp_rank: int
    tp_rank: int


@dataclass(frozen=True, kw_only=True)
class Placement:
    """All instances."""

    instances: tuple[InstancePlacement, ...]

    @classmethod
    def uniform(
        cls, *, num_instances: int, tp_size: int, layer_partition: Sequence[int]
    ) -> Placement:
        """Equal instances on consecutive ranks.

        Args:
            num_instances: how many.
            tp_size: ranks of a stage.
            layer_partition: layers of each stage.
        """
        ends = list(accumulate(layer_partition, initial=0))
        pp_size = len(layer_partition)

        def stage(instance: int, index: int) -> Stage:
            first = (instance * pp_size + index) * tp_size
            return Stage(
                ranks=tuple(range(first, first + tp_size)),
                layers=range(ends[index], ends[index + 1]),
            )

        return cls(
            instances=tuple(
                InstancePlacement(stages=tuple(stage(i, s) for s in range(pp_size)))
                for i in range(num_instances)
            )
        )

    @property
    def num_ranks(self) -> int:
        """Ranks of all instances."""
        return sum(len(instance.ranks) for instance in self.instances)

    def seat(self, rank: int) -> Seat:
        """Where a world rank sits. Raises: ValueError where it holds nothing."""
        for index, instance in enumerate(self.instances):
            for pp_rank, stage in enumerate(instance.stages):
                if rank in stage.ranks:
                    return Seat(instance=index, pp_rank=pp_rank, tp_rank=stage.ranks.index(rank))
        raise ValueError(f"rank {rank} is not part of the placement")


def balanced_partition(num_layers: int, num_stages: int, head_layers: float) -> tuple[int, ...]:
    """Layers of each stage where nobody said: so that the slowest stage takes the least time.

    A pipeline is as fast as its slowest stage, and the last one computes the head beside its
    layers, which costs a decode step as much as reading its weights.

    Args:
        num_layers: of the model, at least num_stages.
        num_stages: at least 1.
        head_layers: weights of the head over those of a layer.
    """
    if num_stages == 1:
        return (num_layers,)
    others = num_stages - 1

    def badness(last: int) -> tuple[float, int]:
        slowest = max(-(-(num_layers - last) // others), last + head_layers)
        return slowest, abs(last * num_stages - num_layers)  # even stages have even KV caches

    last = min(range(1, num_layers - others + 1), key=badness)
    share, left = divmod(num_layers - last, others)
    return (*(share + (index < left) for index in range(others)), last)
