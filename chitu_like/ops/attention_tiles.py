"""How the paged attention kernels of ops/triton cut a batch, and how large their tiles are.

Apart from the kernels, so that planning needs no Triton.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MIN_SIDE = 16
"""Of a tile: Triton's dot takes no shorter one."""

MAX_HEAD_DIM = 256
TILE_FIELDS = 5  # of a row of `cut_tiles`

HOPPER_SHARED_BYTES = 227 << 10
"""Shared memory that a program may have on the devices that the tiles below were cut for."""


@dataclass(frozen=True, kw_only=True)
class Tile:
    """How a kernel is cut.

    Attributes:
        rows: query rows of a program: tokens x query heads of a group. A power of two, 16 at least.
        keys: keys it takes at once, likewise.
        num_warps, num_stages: as Triton has them.
    """

    rows: int
    keys: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """The tiles of both kernels.

    Attributes:
        decode: its rows are a minimum: a program holds the whole group of query heads.
        prefill: of chunks of any length.
    """

    decode: Tile
    prefill: Tile


def _tiling(decode: tuple[int, int, int], prefill: tuple[int, int, int, int]) -> Tiling:
    keys, num_warps, num_stages = decode
    return Tiling(
        decode=Tile(rows=MIN_SIDE, keys=keys, num_warps=num_warps, num_stages=num_stages),
        prefill=Tile(rows=prefill[0], keys=prefill[1], num_warps=prefill[2], num_stages=prefill[3]),
    )


TILINGS = {
    # (head_dim up to, bytes an element): decode keys, warps, stages; prefill rows, keys, warps, stages
    (64, 2): _tiling((128, 4, 2), (128, 64, 8, 3)),
    (128, 2): _tiling((64, 4, 2), (128, 128, 8, 3)),
    (256, 2): _tiling((32, 4, 2), (128, 32, 8, 3)),
    (64, 4): _tiling((64, 4, 2), (32, 32, 4, 2)),
    (128, 4): _tiling((16, 4, 2), (32, 16, 8, 2)),
    (256, 4): _tiling((16, 4, 2), (32, 16, 8, 2)),
}
"""Heads of 128 in 16 bits: the best of benchmarks/tune_attention.py on an H200 (benchmarks/RESULTS.md).

The others are GUESSES: all that is known, from compiling for sm_90, is that nothing spills registers.
float32 is here to be compared with, not to be fast.
"""


def tiling_for(
    head_dim: int, dtype: torch.dtype, shared_bytes: int = HOPPER_SHARED_BYTES
) -> Tiling:
    """The row of TILINGS for heads of `head_dim`, its tiles cut until they fit a smaller device.

    Args:
        head_dim: MAX_HEAD_DIM at most.
        dtype: of queries, keys and values.
        shared_bytes: that a program may have.
    """
    limit = max(64, 1 << (head_dim - 1).bit_length())
    tiling, row_bytes = TILINGS[limit, dtype.itemsize], limit * dtype.itemsize
    return Tiling(
        decode=_fitting(tiling.decode, row_bytes, shared_bytes),
        prefill=_fitting(tiling.prefill, row_bytes, shared_bytes),
    )


def _fitting(tile: Tile, row_bytes: int, shared_bytes: int) -> Tile:
    """The tile, its longer side halved until its queries, and keys and values of all stages, fit."""
    while (
        max(tile.rows, tile.keys) > MIN_SIDE
        and (tile.rows + 2 * tile.keys * tile.num_stages) * row_bytes > shared_bytes
    ):
        if tile.keys >= tile.rows:
            tile = replace(tile, keys=tile.keys // 2)
        else:
            tile = replace(tile, rows=tile.rows // 2)
    return tile


class SplitRoom:
    """Memory that batches share of which only one is computed at a time, as captured ones are.

    Args:
        device: where it is.
    """

    def __init__(self, device: torch.device) -> None:
        self._floats = torch.empty(0, dtype=torch.float32, device=device)

    def take(self, count: int) -> Tensor:
        """[count] float32, the same for everybody; an earlier, smaller piece stays as it is."""
        if count > len(self._floats):
            self._floats = torch.empty(count, dtype=torch.float32, device=self._floats.device)
        return self._floats[:count]


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Where the splits of a batch leave what they found; the layers share it, one after the other.

    Attributes:
        count: splits of each request; a power of two where tokens is 0.
        tokens: of a split, the first of which starts at position 0; 0: equal shares.
        outputs: [num_reqs, num_heads, count, head_dim] float32; empty for one split.
        log_sums: [num_reqs, num_heads, count] float32; empty for one split.
    """

    count: int
    tokens: int
    outputs: Tensor
    log_sums: Tensor

    @classmethod
    def allocate(
        cls,
        count: int,
        *,
        tokens: int = 0,
        num_reqs: int,
        num_heads: int,
        head_dim: int,
        device: torch.device,
        room: SplitRoom | None = None,
    ) -> Splits:
        """Room for a batch of `num_reqs`, padding included; within `room` where that is given."""
        shape = (num_reqs if count > 1 else 0, num_heads, count)
        num_sums = math.prod(shape)
        floats = (room or SplitRoom(device)).take(num_sums * (head_dim + 1))
        return cls(
            count=count,
            tokens=tokens,
            outputs=floats[: num_sums * head_dim].view(*shape, head_dim),
            log_sums=floats[num_sums * head_dim :].view(shape),
        )


def cut_tiles(
    query_lens: NDArray[np.int32],
    context_lens: NDArray[np.int32],
    num_leading: int,
    *,
    group: int,
    rows: int,
) -> NDArray[np.int32]:
    """The tiles of a batch's chunks, those that see the most keys first.

    The query rows of a request are numbered through from its first token on, whatever chunk they
    came in, and tiles start at multiples of `rows`. So a row stands in the same tile however the
    prompt was cut, and takes the same path through its keys, which makes its bits the same.

    A device takes programs in order: long ones at the end would have it wait for a few.

    Args:
        query_lens: [num_reqs] tokens of each request in the batch.
        context_lens: [num_reqs] tokens each has in the cache, those included.
        num_leading: requests at the front that get no tiles.
        group: query heads of a key-value head.
        rows: of a tile.

    Returns: [num_tiles, 5]: the request; where its token 0 would stand in the batch, negative where
        it is not in it; the position of its first token in the batch; its context length; and the
        tile's first row.
    """
    requests = np.arange(num_leading, len(query_lens))
    prefix_lens = context_lens - query_lens
    origins = np.cumsum(query_lens) - context_lens
    first_tiles = prefix_lens[requests] * group // rows
    counts = -(-context_lens[requests] * group // rows) - first_tiles
    request = np.repeat(requests, counts)
    index = np.arange(len(request)) - np.repeat(np.cumsum(counts) - counts - first_tiles, counts)
    first_rows = index * rows
    tiles = np.stack(
        (request, origins[request], prefix_lens[request], context_lens[request], first_rows), 1
    )
    order = np.argsort(-(first_rows // group), kind="stable")
    return tiles[order].astype(np.int32)


def decode_tiles(context_lens: Tensor, *, group: int, rows: int) -> Tensor:
    """The tiles of decodes as chunks of one token, computed where the lengths are.

    The tiles of `cut_tiles`, in the order of the requests; where `rows` is no multiple of `group` a
    token may stand across two, so each has two, of which one may hold none of its rows.

    Args:
        context_lens: [num_reqs] int32, the token itself included.
        group: query heads of a key-value head, at most `rows`.
        rows: of a tile.

    Returns: [num_tiles, 5] int32.
    """
    assert group <= rows, f"a token has {group} rows, a tile {rows}"
    offsets = [0] if rows % group == 0 else [0, rows]
    request = torch.arange(len(context_lens), dtype=torch.int32, device=context_lens.device)
    position = context_lens - 1
    first_row = position * group // rows * rows
    fields = (request, request - position, position, context_lens)
    tiles = [torch.stack((*fields, first_row + offset), 1) for offset in offsets]
    return torch.cat(tiles)
