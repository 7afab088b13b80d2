"""What the kernels that draw tokens find out of each row first, and the way they take from there.

*Scan*, a program a tile of a row, notes the best logit of the tile and of each group of few tokens.
*Plan*, a program a row, ends what is greedy and decides how the rest is drawn (triton/draw.py).
"""

from __future__ import annotations

import triton
import triton.language as tl

from chitu_like.ops import draw
from chitu_like.ops.triton.gumbel import gumbel_noise, noise_keys
from chitu_like.ops.triton.launch import wait_for_previous
from chitu_like.ops.triton.truncation import (
    LAST_KEY,
    NO_KEY,
    SOUND_LOGIT,
    WEIGHT_UNITS,
    count_up_to,
    distance_of,
    key_of,
    load_limits,
    make_sound,
    share_of,
    smallest_key_that_reaches,
)

NUM_PARAMS = tl.constexpr(draw.NUM_PARAMS)

# Planes of tile_values, [num_rows, NUM_VALUES, num_tiles] float32, and of tile_ids, int32.
NUM_VALUES = tl.constexpr(3)
BEST = tl.constexpr(0)  # of the tile's logits
_LOWEST = tl.constexpr(1)  # of those that are not banned by an infinity
_TOTAL = tl.constexpr(2)  # sum of weights, relative to the tile's best; rounded
NUM_IDS = tl.constexpr(2)
FIRST = tl.constexpr(0)  # of the tokens with the best logit
_IS_BAD = tl.constexpr(1)  # whether some logit is NaN or infinite

# Counters of a row, [num_rows, NUM_COUNTS] int32.
NUM_COUNTS = tl.constexpr(4)
NUM_CANDIDATES = tl.constexpr(0)
NUM_WINNERS = tl.constexpr(1)  # that may win
NUM_ARRIVED = tl.constexpr(2)  # programs that have done their tile

# A row's record, [num_rows, RECORD_SIZE] int32; floats as their bits.
RECORD_SIZE = tl.constexpr(4)
MODE = tl.constexpr(0)
BEST_LOGIT = tl.constexpr(1)
LAST = tl.constexpr(2)  # DRAWN: the last key that is kept; LISTED: a key not before it
NUMBER = tl.constexpr(3)  # DRAWN: a sum of score and noise; SURVEYED: bins in a distance of 1

GREEDY = tl.constexpr(0)  # done
DRAWN = tl.constexpr(1)  # what is kept is known
LISTED = tl.constexpr(2)  # what may be kept fits into a list
SURVEYED = tl.constexpr(3)  # the distance at which the kept tokens end is looked for in bins
SEARCHED = tl.constexpr(4)  # one program does it all

NUM_BINS = tl.constexpr(256)
_LEAST_RANGE = tl.constexpr(1e-6)


@triton.jit(do_not_specialize=["slots"])
def scan_kernel(
    logits, table, slots, tile_values, tile_ids, maxima, counts, bins, row_stride, vocab_size,
    num_groups, TILE: tl.constexpr, GROUP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One tile of one row."""
    row, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    num_tiles = tl.num_programs(1)
    wait_for_previous(PDL)
    groups = tile * (TILE // GROUP) + tl.arange(0, TILE // GROUP)
    token_ids = groups[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    is_token = token_ids < vocab_size
    raw = tl.load(logits + row * row_stride + token_ids, mask=is_token, other=float("-inf"))
    raw = raw.to(tl.float32)
    row_params = table + tl.load(slots + row) * NUM_PARAMS
    temperature, top_k, top_p, _ = load_limits(row_params, vocab_size)
    sound = make_sound(raw)
    group_bests = tl.max(sound, 1)
    best = tl.max(group_bests, 0)
    first = tl.min(tl.min(tl.where(sound == best, token_ids, NO_KEY), 1), 0)
    is_bad = tl.max(tl.max(tl.where(raw < float("inf"), 0, 1), 1), 0)

    values = tile_values + row * NUM_VALUES * num_tiles + tile
    ids = tile_ids + row * NUM_IDS * num_tiles + tile
    tl.store(values + BEST * num_tiles, best)
    tl.store(ids + FIRST * num_tiles, first)
    tl.store(ids + _IS_BAD * num_tiles, is_bad)
    if tile == 0:
        tl.store(counts + row * NUM_COUNTS + tl.arange(0, NUM_COUNTS), 0)
    if (temperature > 0) & ((top_k > 0) | (top_p < 1)):
        tl.store(maxima + row * num_groups + groups, group_bests, mask=groups < num_groups)
        is_drawable = is_token & (sound > -SOUND_LOGIT)
        lowest = tl.min(tl.min(tl.where(is_drawable, sound, SOUND_LOGIT), 1), 0)
        tl.store(values + _LOWEST * num_tiles, lowest)
        weights = tl.exp((sound - best) * (1.0 / temperature))
        total = tl.sum(tl.sum(tl.where(is_token, weights, 0.0), 1), 0)
        tl.store(values + _TOTAL * num_tiles, total)
        if tile == 0:
            tl.store(bins + row * NUM_BINS + tl.arange(0, NUM_BINS), tl.zeros([NUM_BINS], tl.int64))


@triton.jit
def bin_of(distance, scale):
    """Which of NUM_BINS a distance falls into: a number that grows with it."""
    return tl.minimum(distance * scale, NUM_BINS - 1.0).to(tl.int32)


@triton.jit
def sure_score(
    logits, bests, firsts, best, temperature, last, scale, num_sure_bins, key0, key1,
    vocab_size, SAMPLE: tl.constexpr,
):  # fmt: skip
    """The largest sum of score and noise among some tokens that are kept, the best one of them.

    Looked at are the best tokens of the tiles, and the row's first SAMPLE ones. Kept are keys up to
    `last` in the first bins, and the best logit.
    """
    distance = distance_of(bests, best, temperature)
    is_kept = (key_of(distance) <= last) & (bin_of(distance, scale) < num_sure_bins)
    is_kept = (is_kept | (bests == best)) & (firsts < vocab_size)
    score = gumbel_noise(firsts, key0, key1) - distance
    largest = tl.max(tl.where(is_kept, score, float("-inf")), 0)
    token_ids = tl.arange(0, SAMPLE)
    sound = make_sound(tl.load(logits + token_ids, mask=token_ids < vocab_size, other=0.0))
    distance = distance_of(sound, best, temperature)
    is_kept = (key_of(distance) <= last) & (bin_of(distance, scale) < num_sure_bins)
    score = gumbel_noise(token_ids, key0, key1) - distance
    is_kept = is_kept & (token_ids < vocab_size)
    return tl.maximum(largest, tl.max(tl.where(is_kept, score, float("-inf")), 0))


@triton.jit
def load_bests(values, ids, num_tiles, TILES: tl.constexpr):
    """Best logits of a row's tiles and their tokens, both [TILES]; NO_KEY is no token."""
    tiles = tl.arange(0, TILES)
    is_tile = tiles < num_tiles
    bests = tl.load(values + BEST * num_tiles + tiles, mask=is_tile, other=-SOUND_LOGIT)
    firsts = tl.load(ids + FIRST * num_tiles + tiles, mask=is_tile, other=NO_KEY)
    return bests, firsts


@triton.jit
def _plan_search(
    values, maxima, bests, best, temperature, top_k, top_p, vocab_size, num_tiles, num_groups,
    TILES: tl.constexpr, GROUPS: tl.constexpr, CAPACITY: tl.constexpr,
):  # fmt: skip
    """Mode, a key not before the last that is kept, and bins in a distance of 1, for top_k or top_p.

    What the best tokens of the groups reach by themselves all tokens up to the same key reach. Where
    that takes not too many groups, few other tokens are as good.
    """
    tiles = tl.arange(0, TILES)
    is_tile = tiles < num_tiles
    lowest = tl.load(values + _LOWEST * num_tiles + tiles, mask=is_tile, other=SOUND_LOGIT)
    farthest = distance_of(tl.min(lowest, 0), best, temperature)
    if top_k > 0:
        last = smallest_key_that_reaches(
            top_k.to(tl.int64), maxima, maxima, 0, num_groups, best, temperature, False, GROUPS
        )
    else:
        totals = tl.load(values + _TOTAL * num_tiles + tiles, mask=is_tile, other=0.0)
        total = tl.sum(totals * tl.exp(-distance_of(bests, best, temperature)), 0)
        total *= 1.001  # it is rounded
        target = share_of((total * WEIGHT_UNITS).to(tl.int64), top_p)
        last = smallest_key_that_reaches(
            target, maxima, maxima, 0, num_groups, best, temperature, True, GROUPS
        )
        # Beyond, even a whole vocabulary has less weight than may be left out.
        may_miss = tl.log(vocab_size / ((1.0 - top_p) * total)) + 0.01
        farthest = tl.minimum(farthest, tl.maximum(may_miss, 0.0))
    scale = (NUM_BINS - 1.0) / tl.maximum(farthest, _LEAST_RANGE)
    reached = count_up_to(last, maxima, num_groups, best, temperature, GROUPS)
    if vocab_size <= CAPACITY:
        mode, last = LISTED, LAST_KEY
    elif reached * 4 <= num_groups * 3:
        mode = LISTED
    elif (top_k > 0) & (top_p < 1):
        mode = SEARCHED
    else:
        mode = SURVEYED
    return mode, last, scale


@triton.jit(do_not_specialize=["slots", "positions"])
def plan_kernel(
    logits, table, slots, positions, tile_values, tile_ids, maxima, records,
    tokens, is_unsound, last_sampled, row_stride, vocab_size, num_tiles, num_groups,
    TILES: tl.constexpr, GROUPS: tl.constexpr, CAPACITY: tl.constexpr, SAMPLE: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """One row."""
    row = tl.program_id(0).to(tl.int64)
    wait_for_previous(PDL)
    values = tile_values + row * NUM_VALUES * num_tiles
    ids = tile_ids + row * NUM_IDS * num_tiles
    tiles = tl.arange(0, TILES)
    bests, firsts = load_bests(values, ids, num_tiles, TILES)
    bad = tl.load(ids + _IS_BAD * num_tiles + tiles, mask=tiles < num_tiles, other=0)
    best = tl.max(bests, 0)
    slot = tl.load(slots + row)
    row_params = table + slot * NUM_PARAMS
    temperature, top_k, top_p, min_p_key = load_limits(row_params, vocab_size)
    tl.store(is_unsound + row, (tl.max(bad, 0) > 0) | (best <= -SOUND_LOGIT))

    record = records + row * RECORD_SIZE
    tl.store(record + BEST_LOGIT, best.to(tl.int32, bitcast=True))
    if temperature <= 0:
        token = tl.min(tl.where(bests == best, firsts, NO_KEY), 0).to(tl.int64)
        tl.store(tokens + row, token)
        tl.store(last_sampled + slot, token)
        tl.store(record + MODE, GREEDY)
    elif (top_k > 0) | (top_p < 1):
        mode, last, scale = _plan_search(
            values, maxima + row * num_groups, bests, best, temperature, top_k, top_p, vocab_size,
            num_tiles, num_groups, TILES, GROUPS, CAPACITY,
        )  # fmt: skip
        tl.store(record + MODE, mode)
        tl.store(record + LAST, last)
        tl.store(record + NUMBER, scale.to(tl.int32, bitcast=True))
    else:
        key0, key1 = noise_keys(row_params, tl.load(positions + row))
        floor = sure_score(
            logits + row * row_stride, bests, firsts, best, temperature, min_p_key, 0.0, 1,
            key0, key1, vocab_size, SAMPLE,
        )  # fmt: skip
        tl.store(record + MODE, DRAWN)
        tl.store(record + LAST, min_p_key)
        tl.store(record + NUMBER, floor.to(tl.int32, bitcast=True))
