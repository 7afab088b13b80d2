"""Ways to cut the paged attention kernels that attention_tuning.py tries."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import torch

from chitu_like.attention.triton import WAVES, TritonBackend, num_splits
from chitu_like.bench.attention_case import attention_spec
from chitu_like.bench.op_case import Setting
from chitu_like.ops.attention_tiles import MIN_SIDE, Tile, Tiling

DECODE_TILES = (
    *((64, num_warps, num_stages) for num_warps in (2, 4) for num_stages in (2, 3, 4)),
    *((32, num_warps, num_stages) for num_warps in (1, 2) for num_stages in (3, 4, 5)),
    (128, 4, 2),
    (128, 4, 3),
    (128, 8, 3),
)
"""Keys, warps, stages."""
PREFILL_TILES = (
    *((128, 128, 8, num_stages) for num_stages in (2, 3, 4)),
    *((128, 64, num_warps, num_stages) for num_warps in (4, 8) for num_stages in (2, 3, 4)),
    *((64, 64, 4, num_stages) for num_stages in (2, 3, 4)),
    (64, 128, 4, 2),
    (64, 128, 4, 3),
)
"""Rows, keys, warps, stages."""
ALL_WAVES = (1, 2, 4, 8)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A way to cut the kernels.

    Attributes:
        tiling: tiles of both; one of them is searched at a time.
        waves: decode programs for each multiprocessor.
        pdl: programmatic dependent launch.
    """

    tiling: Tiling
    waves: int = WAVES
    pdl: bool = False

    def backend(self, at: Setting) -> TritonBackend:
        """One that cuts so."""
        return TritonBackend(
            attention_spec(at),
            tiling=self.tiling,
            num_programs=self._num_programs(at),
            pdl=self.pdl,
        )

    def work(self, at: Setting) -> Hashable:
        """What decides its time at a point: candidates that share it need one measurement."""
        splits = None
        if at.is_decode:
            splits = num_splits(at.num_reqs, at.spec.num_kv_heads, self._num_programs(at))
        return self.tiling, self.pdl, splits

    def _num_programs(self, at: Setting) -> int:
        return self.waves * torch.cuda.get_device_properties(at.device).multi_processor_count


def decode_candidates(base: Tiling) -> list[Candidate]:
    """Decode tiles worth measuring; the table's own first."""
    tiles = [base.decode]
    for keys, num_warps, num_stages in DECODE_TILES:
        tiles.append(Tile(rows=MIN_SIDE, keys=keys, num_warps=num_warps, num_stages=num_stages))
    return [
        Candidate(tiling=Tiling(decode=tile, prefill=base.prefill)) for tile in dict.fromkeys(tiles)
    ]


def split_candidates(best: Sequence[Candidate]) -> list[Candidate]:
    """The best decode tiles with all numbers of splits and kinds of launches."""
    choices = itertools.product(best, ALL_WAVES, (False, True))
    return [replace(candidate, waves=waves, pdl=pdl) for candidate, waves, pdl in choices]


def prefill_candidates(base: Tiling) -> list[Candidate]:
    """Prefill tiles worth measuring; the table's own first."""
    tiles = [base.prefill]
    for rows, keys, num_warps, num_stages in PREFILL_TILES:
        tiles.append(Tile(rows=rows, keys=keys, num_warps=num_warps, num_stages=num_stages))
    return [
        Candidate(tiling=Tiling(decode=base.decode, prefill=tile)) for tile in dict.fromkeys(tiles)
    ]
