"""ParallelContext: this rank's coordinates, handed down to every layer and never fetched."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ParallelContext:
    """Where this rank stands in its instance.

    Attributes:
        tp_rank, tp_size: its place in the tensor-parallel group of its stage.
        pp_rank, pp_size: its stage, and how many there are.
    """

    tp_rank: int
    tp_size: int
    pp_rank: int
    pp_size: int

    def __post_init__(self) -> None:
        """Ranks lie within their sizes."""
        for rank, size in ((self.tp_rank, self.tp_size), (self.pp_rank, self.pp_size)):
            if not 0 <= rank < size:
                raise ValueError(f"rank {rank} is not below size {size}")

    @classmethod
    def single(cls) -> ParallelContext:
        """One rank that holds the whole model."""
        return cls(tp_rank=0, tp_size=1, pp_rank=0, pp_size=1)
