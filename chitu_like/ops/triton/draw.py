"""Drawing tokens without sorting the vocabulary: three launches whose shapes are the batch's.

*Scan*, a program a tile of a row, finds the tile's best logit and, where top_p asks for it, the sum of
its weights. *Sift*, a program a tile again, knows the row's best. Where nothing is truncated it adds
the noise and keeps the tile's best token; else it lists the tile's candidates, the tokens that may
be kept. *Finish*, a program a row, takes the best of the tiles, or searches the candidates for the
smallest score that is kept (triton/truncation.py) and draws among those that reach it.

Candidates are found by the same search, over the best tokens of all tiles: what those few reach is
reached by all tokens up to the same key, so the key is a bound. For top_p there is a second one, for
rows where probability is spread wide: beyond a distance of log(vocab_size / ((1 - top_p) * total))
even a whole vocabulary has less weight than may be left out. What is below both is little as a rule.
Where it is more than fits into the list, one program searches the row itself: slow, and as right.

Tiles are the same in every batch, so that sums round alike whatever shares it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from chitu_like.ops import draw
from chitu_like.ops.draw import draw_tokens_op
from chitu_like.ops.triton.gumbel import gumbel_noise, noise_keys
from chitu_like.ops.triton.launch import dependent_launch, serves, wait_for_previous
from chitu_like.ops.triton.truncation import (
    LAST_KEY,
    NO_KEY,
    WEIGHT_UNITS,
    last_kept_key,
    load_limits,
    load_tokens,
    make_sound,
    share_of,
    smallest_key_that_reaches,
)

_NUM_PARAMS = tl.constexpr(draw.NUM_PARAMS)

# Planes of the scratch tensors tile_values and tile_ids, each [num_rows, NUM_PLANES, num_tiles].
_NUM_PLANES = tl.constexpr(3)
_BEST = tl.constexpr(0)  # the best logit, and its token
_DRAWN = tl.constexpr(1)  # the best sum of score and noise, and its token
_TOTAL = tl.constexpr(2)  # sum of weights, relative to the tile's best
_SOUNDNESS = tl.constexpr(2)  # of the two below

_IS_BAD = tl.constexpr(1)  # some logit is NaN or infinite
_IS_NUMBER = tl.constexpr(2)  # some logit is neither NaN nor -inf


@dataclass(frozen=True, kw_only=True)
class DrawTiling:
    """How a call is cut. The numbers are guesses, not measured yet.

    Attributes:
        tile: tokens of a program of the first two kernels; sums of top_p round by it.
        capacity: candidates of a row that fit into its list.
        chunk: of them, how many are loaded together.
        tile_warps: of a program of the first two kernels.
        row_warps: of one of the last.
    """

    tile: int = 1024
    capacity: int = 8192
    chunk: int = 2048
    tile_warps: int = 4
    row_warps: int = 8


TILING = DrawTiling()


@triton.jit(do_not_specialize=["slots"])
def _scan_kernel(
    logits, table, slots, tile_values, tile_ids, counts, row_stride, vocab_size,
    TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One tile of one row."""
    row, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    num_tiles = tl.num_programs(1)
    wait_for_previous(PDL)
    row_params = table + tl.load(slots + row) * _NUM_PARAMS
    temperature, _, top_p, _ = load_limits(row_params, vocab_size)
    token_ids = tile * TILE + tl.arange(0, TILE)
    is_token = token_ids < vocab_size
    raw = tl.load(logits + row * row_stride + token_ids, mask=is_token, other=0.0).to(tl.float32)
    sound = tl.where(is_token, make_sound(raw), float("-inf"))
    best, first = tl.max(sound, 0, return_indices=True, return_indices_tie_break_left=True)
    is_bad = is_token & ((raw != raw) | (raw == float("inf")))
    is_number = is_token & (raw > float("-inf"))
    bad = tl.max(tl.where(is_bad, _IS_BAD, 0), 0)
    number = tl.max(tl.where(is_number, _IS_NUMBER, 0), 0)

    values = tile_values + row * _NUM_PLANES * num_tiles + tile
    ids = tile_ids + row * _NUM_PLANES * num_tiles + tile
    tl.store(values + _BEST * num_tiles, best)
    tl.store(ids + _BEST * num_tiles, tile * TILE + first)
    tl.store(ids + _SOUNDNESS * num_tiles, bad | number)
    if tile == 0:
        tl.store(counts + row, 0)
    if (temperature > 0) & (top_p < 1):
        weights = tl.exp(-tl.div_rn(best - sound, temperature))
        tl.store(values + _TOTAL * num_tiles, tl.sum(weights, 0))


@triton.jit
def _load_bests(values, num_tiles, TILES: tl.constexpr):
    """Best logits of a row's tiles, [TILES], and the best of all."""
    tiles = tl.arange(0, TILES)
    bests = tl.load(values + _BEST * num_tiles + tiles, mask=tiles < num_tiles, other=float("-inf"))
    return bests, tl.max(bests, 0)


@triton.jit
def _load_total(values, bests, best, temperature, num_tiles, TILES: tl.constexpr):
    """Weight of the whole row, in units."""
    tiles = tl.arange(0, TILES)
    totals = tl.load(values + _TOTAL * num_tiles + tiles, mask=tiles < num_tiles, other=0.0)
    total = tl.sum(totals * tl.exp(-tl.div_rn(best - bests, temperature)), 0)
    return (total * WEIGHT_UNITS).to(tl.int64)


@triton.jit
def _last_candidate(
    values, ids, bests, best, temperature, top_k, top_p, min_p_key, vocab_size, num_tiles,
    TILES: tl.constexpr,
):  # fmt: skip
    """A key beyond which no token of the row is kept."""
    at = values + _BEST * num_tiles
    if top_k > 0:
        last = smallest_key_that_reaches(
            top_k.to(tl.int64), at, ids, 0, num_tiles, best, temperature, False, TILES
        )
    elif top_p < 1:
        total = _load_total(values, bests, best, temperature, num_tiles, TILES)
        target = share_of(total, top_p)
        last = smallest_key_that_reaches(
            target, at, ids, 0, num_tiles, best, temperature, True, TILES
        )
        left_out = (1.0 - top_p) * (total.to(tl.float32) / WEIGHT_UNITS)
        farthest = tl.log(vocab_size / left_out)
        farthest = tl.maximum(farthest, 0.0) + 0.01  # the total is rounded
        last = tl.minimum(last, farthest.to(tl.int32, bitcast=True))
    else:
        last = min_p_key
    return last


@triton.jit(do_not_specialize=["slots", "positions"])
def _sift_kernel(
    logits, table, slots, positions, tile_values, tile_ids, counts, candidates,
    row_stride, vocab_size,
    TILE: tl.constexpr, TILES: tl.constexpr, CAPACITY: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One tile of one row, unless the row is greedy."""
    row, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    num_tiles = tl.num_programs(1)
    wait_for_previous(PDL)
    row_params = table + tl.load(slots + row) * _NUM_PARAMS
    temperature, top_k, top_p, min_p_key = load_limits(row_params, vocab_size)
    if temperature > 0:
        values = tile_values + row * _NUM_PLANES * num_tiles
        ids = tile_ids + row * _NUM_PLANES * num_tiles
        bests, best = _load_bests(values, num_tiles, TILES)
        token_ids = tile * TILE + tl.arange(0, TILE)
        is_token = token_ids < vocab_size
        raw = tl.load(logits + row * row_stride + token_ids, mask=is_token, other=0.0)
        distance = tl.div_rn(best - make_sound(raw), temperature)
        if (top_k > 0) | (top_p < 1) | (min_p_key < LAST_KEY):
            last = _last_candidate(
                values, ids, bests, best, temperature, top_k, top_p, min_p_key, vocab_size,
                num_tiles, TILES,
            )  # fmt: skip
            is_candidate = is_token & (distance.to(tl.int32, bitcast=True) <= last)
            num_candidates = tl.sum(is_candidate.to(tl.int32), 0)
            if num_candidates > 0:
                start = tl.atomic_add(counts + row, num_candidates)
                at = start + tl.cumsum(is_candidate.to(tl.int32), 0) - 1
                fits = is_candidate & (at < CAPACITY)
                tl.store(candidates + row * CAPACITY + at, token_ids, mask=fits)
        else:
            key0, key1 = noise_keys(row_params, tl.load(positions + row))
            score = tl.where(
                is_token, gumbel_noise(token_ids, key0, key1) - distance, float("-inf")
            )
            score, first = tl.max(score, 0, return_indices=True, return_indices_tie_break_left=True)
            tl.store(values + _DRAWN * num_tiles + tile, score)
            tl.store(ids + _DRAWN * num_tiles + tile, tile * TILE + first)


@triton.jit
def _draw_up_to(
    last, logits, listed, num_listed, count, best, temperature, key0, key1, CHUNK: tl.constexpr
):
    """The token with the largest sum of score and noise among those whose key is up to `last`."""
    scores = tl.full([CHUNK], float("-inf"), tl.float32)
    winners = tl.full([CHUNK], NO_KEY, tl.int32)
    for start in range(0, count, CHUNK):
        token_ids, keys = load_tokens(
            logits, listed, num_listed, start, count, best, temperature, CHUNK
        )  # fmt: skip
        distance = tl.minimum(keys, LAST_KEY).to(tl.float32, bitcast=True)
        score = gumbel_noise(token_ids, key0, key1) - distance
        score = tl.where(keys <= last, score, float("-inf"))
        is_better = (score > scores) | ((score == scores) & (token_ids < winners))
        scores = tl.where(is_better, score, scores)
        winners = tl.where(is_better, token_ids, winners)
    return tl.min(tl.where(scores == tl.max(scores, 0), winners, NO_KEY), 0)


@triton.jit(do_not_specialize=["slots", "positions"])
def _finish_kernel(
    logits, table, slots, positions, tile_values, tile_ids, counts, candidates,
    tokens, is_unsound, last_sampled, row_stride, vocab_size, num_tiles,
    TILES: tl.constexpr, CAPACITY: tl.constexpr, CHUNK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One row."""
    row = tl.program_id(0).to(tl.int64)
    wait_for_previous(PDL)
    slot = tl.load(slots + row)
    row_params = table + slot * _NUM_PARAMS
    temperature, top_k, top_p, min_p_key = load_limits(row_params, vocab_size)
    values = tile_values + row * _NUM_PLANES * num_tiles
    ids = tile_ids + row * _NUM_PLANES * num_tiles
    tiles = tl.arange(0, TILES)
    is_drawn = temperature > 0
    if is_drawn & ((top_k > 0) | (top_p < 1) | (min_p_key < LAST_KEY)):
        bests, best = _load_bests(values, num_tiles, TILES)
        total = tl.full((), 0, tl.int64)
        if top_p < 1:
            total = _load_total(values, bests, best, temperature, num_tiles, TILES)
        count = tl.load(counts + row)
        num_listed = tl.where(count <= CAPACITY, count, 0)
        count = tl.where(count <= CAPACITY, count, vocab_size)
        row_logits, listed = logits + row * row_stride, candidates + row * CAPACITY
        last = last_kept_key(
            row_logits, listed, num_listed, count, best, temperature, top_k, top_p, min_p_key,
            total, CHUNK,
        )  # fmt: skip
        key0, key1 = noise_keys(row_params, tl.load(positions + row))
        token = _draw_up_to(
            last, row_logits, listed, num_listed, count, best, temperature, key0, key1, CHUNK
        )
    else:
        plane = tl.where(is_drawn, _DRAWN, _BEST) * num_tiles
        scores = tl.load(values + plane + tiles, mask=tiles < num_tiles, other=float("-inf"))
        _, tile = tl.max(scores, 0, return_indices=True, return_indices_tie_break_left=True)
        token = tl.load(ids + plane + tile)
    soundness = tl.load(ids + _SOUNDNESS * num_tiles + tiles, mask=tiles < num_tiles, other=0)
    is_bad = tl.max(soundness & _IS_BAD, 0) > 0
    has_number = tl.max(soundness & _IS_NUMBER, 0) > 0
    tl.store(tokens + row, token.to(tl.int64))
    tl.store(is_unsound + row, is_bad | (not has_number))
    tl.store(last_sampled + slot, token.to(tl.int64))


@draw_tokens_op.register("triton", supports=serves)
def draw_tokens(
    logits: Tensor,
    params: Tensor,
    slots: Tensor,
    output_positions: Tensor,
    last_sampled: Tensor,
    tiling: DrawTiling = TILING,
) -> tuple[Tensor, Tensor]:
    """See ops/draw.py."""
    num_rows, vocab_size = logits.shape
    device, row_stride = logits.device, logits.stride(0)
    assert logits.stride(1) == 1, f"strides of logits {logits.stride()}"
    tokens = torch.empty(num_rows, dtype=torch.int64, device=device)
    is_unsound = torch.empty(num_rows, dtype=torch.bool, device=device)
    if num_rows == 0:
        return tokens, is_unsound
    num_tiles = triton.cdiv(vocab_size, tiling.tile)
    planes = (num_rows, _NUM_PLANES.value, num_tiles)
    tile_values = torch.empty(planes, dtype=torch.float32, device=device)
    tile_ids = torch.empty(planes, dtype=torch.int32, device=device)
    counts = torch.empty(num_rows, dtype=torch.int32, device=device)
    candidates = torch.empty(num_rows, tiling.capacity, dtype=torch.int32, device=device)
    tiles = triton.next_power_of_2(num_tiles)
    launch = dependent_launch(device)
    _scan_kernel[(num_rows, num_tiles)](
        logits, params, slots, tile_values, tile_ids, counts, row_stride, vocab_size,
        TILE=tiling.tile, num_warps=tiling.tile_warps, **launch,
    )  # fmt: skip
    _sift_kernel[(num_rows, num_tiles)](
        logits, params, slots, output_positions, tile_values, tile_ids, counts, candidates,
        row_stride, vocab_size,
        TILE=tiling.tile, TILES=tiles, CAPACITY=tiling.capacity,
        num_warps=tiling.tile_warps, **launch,
    )  # fmt: skip
    _finish_kernel[(num_rows,)](
        logits, params, slots, output_positions, tile_values, tile_ids, counts, candidates,
        tokens, is_unsound, last_sampled, row_stride, vocab_size, num_tiles,
        TILES=tiles, CAPACITY=tiling.capacity, CHUNK=tiling.chunk,
        num_warps=tiling.row_warps, **launch,
    )  # fmt: skip
    return tokens, is_unsound
