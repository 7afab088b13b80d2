"""ParallelContext: this rank's coordinates and groups, handed down to every layer and never fetched."""

from __future__ import annotations

from dataclasses import dataclass

from chitu_like.cluster.placement import InstancePlacement
from chitu_like.distributed.collectives import DetachedGroup, Group, SoloGroup


@dataclass(frozen=True, kw_only=True)
class ParallelContext:
    """Where this rank stands in its instance.

    Attributes:
        pp_rank, pp_size: its stage, and how many there are.
        tp: the tensor-parallel group of its stage.
        layers: GLOBAL indices of the stage's layers; None: all of the model.
    """

    pp_rank: int
    pp_size: int
    tp: Group
    layers: range | None = None

    def __post_init__(self) -> None:
        """Ranks lie within their sizes."""
        for rank, size in ((self.tp_rank, self.tp_size), (self.pp_rank, self.pp_size)):
            if not 0 <= rank < size:
                raise ValueError(f"rank {rank} is not below size {size}")

    @classmethod
    def single(cls) -> ParallelContext:
        """One rank that holds the whole model."""
        return cls(pp_rank=0, pp_size=1, tp=SoloGroup())

    @classmethod
    def detached(
        cls, placement: InstancePlacement, *, pp_rank: int, tp_rank: int
    ) -> ParallelContext:
        """A rank's place without its peers: what it holds is known, but it cannot compute alone."""
        stage = placement.stages[pp_rank]
        tp_size = len(stage.ranks)
        return cls(
            pp_rank=pp_rank,
            pp_size=len(placement.stages),
            tp=SoloGroup() if tp_size == 1 else DetachedGroup(tp_rank, tp_size),
            layers=stage.layers,
        )

    @property
    def tp_rank(self) -> int:
        """Place in the tensor-parallel group."""
        return self.tp.rank

    @property
    def tp_size(self) -> int:
        """Size of the tensor-parallel group."""
        return self.tp.size

    @property
    def is_first_stage(self) -> bool:
        """Whether it embeds the tokens."""
        return self.pp_rank == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether it computes the logits."""
        return self.pp_rank == self.pp_size - 1

    @property
    def num_ranks(self) -> int:
        """Ranks of the instance."""
        return self.tp_size * self.pp_size
