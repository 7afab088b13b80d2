"""Simulated instances whose goodput is known; a module of its own, so that other processes find it."""

from __future__ import annotations

from dataclasses import dataclass

from chitu_like.planner.distserve import Candidate


@dataclass(frozen=True)
class Known:
    """An instance with a known capacity: requests are good up to it, and none beyond.

    Tensor parallelism pays less than it costs; prefill gains from pp more than decode does.
    """

    memory: int = 1

    def fits(self, candidate: Candidate) -> bool:
        cuts = [cut for cut in (candidate.prefill, candidate.decode) if cut is not None]
        return all(cut.num_devices >= self.memory for cut in cuts)

    def __call__(self, candidate: Candidate, rate: float) -> float:
        return float(rate <= self.capacity(candidate))

    def capacity(self, candidate: Candidate) -> float:
        limits = []
        if candidate.prefill is not None:
            limits.append(3.0 * candidate.prefill.tp**0.7 * candidate.prefill.pp**1.05)
        if candidate.decode is not None:
            limits.append(7.0 * candidate.decode.tp**0.9 * candidate.decode.pp**0.5)
        return min(limits)
