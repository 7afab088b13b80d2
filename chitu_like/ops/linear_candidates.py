"""Which cuts of the skinny linear kernel are worth measuring: guesses for a tuner to judge."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

from chitu_like.ops.linear_tiles import MIN_DOT_TOKENS, SkinnyTile, padded_tokens

MIN_PREFETCH, MAX_PREFETCH = 64, 4096
"""Columns: a line of memory, and what one instruction after another may delay the wait for."""

# (rows, columns, warps, stages). Without tensor cores, columns are a multiple of 256 a warp (in 16
# bits): then the threads that load a piece of x are those that multiply with it, and the loop has no
# barrier. Rows times columns times tokens are limited by the registers that hold the sums.
_Shape = tuple[int, int, int, int]
_PLAIN_SHAPES: dict[int, tuple[_Shape, ...]] = {
    1: (
        (4, 2048, 4, 1),
        (8, 1024, 4, 3),
        (8, 1024, 4, 1),
        (4, 1024, 4, 1),
        (4, 512, 2, 1),
        (8, 512, 2, 1),
        (8, 256, 1, 1),
    ),
    2: ((4, 1024, 4, 1), (4, 512, 2, 1), (8, 256, 1, 1)),
    4: ((2, 1024, 4, 1), (4, 512, 2, 1), (4, 256, 1, 1)),
}
# Every program reads x anew: the more tokens, the more rows it should have.
_FEW_TOKENS: tuple[_Shape, ...] = (
    (64, 128, 4, 4),
    (128, 128, 8, 3),
    (64, 64, 4, 6),
    (128, 64, 8, 6),
    (64, 128, 4, 3),
    (64, 256, 4, 3),
    (256, 64, 8, 4),
    (64, 64, 4, 5),
    (32, 128, 4, 4),
    (32, 256, 4, 4),
    (16, 256, 4, 4),
)
_MANY_TOKENS: tuple[_Shape, ...] = (
    (128, 64, 8, 5),
    (128, 128, 8, 3),
    (64, 128, 4, 3),
    (64, 64, 4, 5),
    (128, 64, 4, 4),
    (128, 64, 8, 4),
    (256, 64, 8, 4),
    (128, 128, 8, 4),
    (64, 256, 4, 3),
    (256, 64, 8, 3),
)
_SPLITS = (1, 2, 3, 4, 6, 8)
_MAX_CANDIDATES = 14


def candidates(
    num_tokens: int, out_features: int, in_features: int, *, num_multiprocessors: int
) -> list[SkinnyTile]:
    """Tiles worth measuring: GUESSES, of which nothing is known but that none spills registers.

    Of every shape the number of splits that `_cost` likes best, then the next best number of the
    first shapes. Without tensor cores programs are many and short, and not split.

    Args:
        num_tokens: one of BUCKETS.
        out_features: rows of the weight.
        in_features: its columns.
        num_multiprocessors: of the device.
    """
    best, second = [], []
    for (rows, columns, num_warps, num_stages), uses_dot in _shapes(num_tokens):
        tiles = [
            SkinnyTile(
                rows=rows,
                columns=columns,
                splits=splits,
                num_warps=num_warps,
                num_stages=num_stages,
                uses_dot=uses_dot,
            )
            for splits in (_SPLITS if uses_dot else _SPLITS[:1])
            if splits == 1 or splits * columns <= in_features
        ]
        tiles.sort(key=partial(_cost, num_tokens, out_features, in_features, num_multiprocessors))
        best.append(tiles[0])
        second += tiles[1:2]
    return [*best, *second][: max(len(best), _MAX_CANDIDATES)]


def _shapes(num_tokens: int) -> list[tuple[_Shape, bool]]:
    """Shapes to cut for so many tokens, and whether they use tensor cores."""
    if num_tokens == 1:
        dot = _FEW_TOKENS[:2]
    else:
        dot = _FEW_TOKENS if num_tokens <= MIN_DOT_TOKENS else _MANY_TOKENS
    plain = _PLAIN_SHAPES.get(num_tokens, ())
    return [*((shape, False) for shape in plain), *((shape, True) for shape in dot)]


_SHARED_BYTES = 227 << 10  # of a multiprocessor
_BYTES_IN_FLIGHT = 48 << 10  # of each, that keep the memory busy
_WEIGHT_BYTES = 2


def _cost(
    num_tokens: int,
    out_features: int,
    in_features: int,
    num_multiprocessors: int,
    tile: SkinnyTile,
) -> tuple[float, int]:
    """A guess at how much longer than its reading a product takes, and the fewer splits the better.

    Programs that do not all fit at once leave places empty in the last round. If they do, they share
    the memory's pace, some of it lost where multiprocessors have unequal numbers of them, as long as
    enough bytes are on their way. What splits write and read again counts where tokens are many.
    """
    tokens = padded_tokens(tile, num_tokens)
    stage_bytes = (tile.rows + tokens) * tile.columns * _WEIGHT_BYTES
    resident = max(1, _SHARED_BYTES // (tile.num_stages * stage_bytes + 1024))
    programs = tile.num_programs(out_features)
    rounds = programs / (resident * num_multiprocessors)
    if rounds > 1:
        waiting = math.ceil(rounds) / rounds
    else:
        beside = programs / num_multiprocessors
        weight_bytes = tile.rows * tile.columns * _WEIGHT_BYTES
        in_flight = beside * max(1, tile.num_stages - 1) * weight_bytes
        waiting = max((1 + math.ceil(beside) / beside) / 2, _BYTES_IN_FLIGHT / in_flight)
    summing = 0.0 if tile.splits == 1 else 8 * tile.splits * num_tokens / in_features
    # A tenth is within what is not known of a device.
    return max(1.1, waiting) + summing, tile.splits


def early_variants(tile: SkinnyTile, in_features: int) -> list[SkinnyTile]:
    """The tile with programmatic dependent launch: no prefetch, a step's, all of the program's."""
    own = 1 << ((in_features // tile.splits).bit_length() - 1)
    lengths = {0, min(own, 2 * tile.columns), min(own, MAX_PREFETCH)}
    return [
        replace(tile, starts_early=True, prefetch=length if length >= MIN_PREFETCH else 0)
        for length in sorted(lengths)
    ]
