"""The smallest score that top_k, top_p and min_p keep, found without sorting.

A token's distance is (best logit - its logit) / temperature: the score of ops/sampling.py without its
sign, to the bit, since the division rounds as IEEE asks for. It is 0 at least, so its bits, read as
an integer, are in the order of the distances: they are its *key*. A truncation keeps the keys up to
one of them, the smallest at which the measure of all keys up to it reaches a target: for top_k their
number, for top_p the sum of their weights exp(-distance).

Bisection over the integers finds it; each step moves the ends to keys that exist, so that it ends as
soon as one is left between them. Weights are summed as integers, in units of 2**-40: in whatever
order tokens come, the sum is the same.
"""

from __future__ import annotations

import triton
import triton.language as tl

from chitu_like.ops import draw

LAST_KEY = tl.constexpr(0x7F800000)
"""Of an infinite distance."""
NO_KEY = tl.constexpr(0x7FFFFFFF)
"""Of what is no token."""
WEIGHT_UNITS = tl.constexpr(float(2**40))
"""Of weight 1, the best token's: a row of a million tokens stays below 2**63."""

SOUND_LOGIT = tl.constexpr(draw.SOUND_LOGIT)
_TEMPERATURE, _TOP_K = tl.constexpr(draw.TEMPERATURE), tl.constexpr(draw.TOP_K)
_TOP_P, _LOG_MIN_P = tl.constexpr(draw.TOP_P), tl.constexpr(draw.LOG_MIN_P)


@triton.jit
def load_limits(row_params, vocab_size):
    """Temperature (0: greedy), top_k (0: keeps all), top_p (1: all), last key of min_p of a row."""
    temperature = tl.load(row_params + _TEMPERATURE).to(tl.float32, bitcast=True)
    top_k = tl.load(row_params + _TOP_K)
    top_k = tl.where(top_k < vocab_size, top_k, 0)
    top_p = tl.load(row_params + _TOP_P).to(tl.float32, bitcast=True)
    log_min_p = tl.load(row_params + _LOG_MIN_P).to(tl.float32, bitcast=True)
    min_p_key = (0.0 - log_min_p).to(tl.int32, bitcast=True)  # not -log_min_p: -0.0 is negative
    return temperature, top_k, top_p, min_p_key


@triton.jit
def make_sound(logits):
    """Float32 without NaN or infinity, like make_sound of ops/draw.py: a NaN yields to a number."""
    return tl.minimum(tl.maximum(logits.to(tl.float32), -SOUND_LOGIT), SOUND_LOGIT)


@triton.jit
def distance_of(sound, best, temperature):
    """How far logits are from the best one, float32, 0 at least."""
    return tl.div_rn(best - sound, temperature)


@triton.jit
def key_of(distance):
    """Its bits, int32."""
    return distance.to(tl.int32, bitcast=True)


@triton.jit
def weight_of(key):
    """exp(-distance) in units, int64; 0 for what is no token."""
    distance = tl.minimum(key, LAST_KEY).to(tl.float32, bitcast=True)
    return (tl.exp(-distance) * WEIGHT_UNITS).to(tl.int64)


@triton.jit
def share_of(total, top_p):
    """What a sum of weights must reach to hold top_p of the total; all three but top_p in units."""
    return tl.maximum((total.to(tl.float64) * top_p.to(tl.float64)).to(tl.int64), 1)


@triton.jit
def append_tokens(listed, counter, is_listed, keys, token_ids, CAPACITY: tl.constexpr):
    """Put tokens behind those that programs have listed before; what does not fit is only counted.

    Args:
        listed: [CAPACITY] int64, a token's key above its id.
        counter: of the tokens, int32.
        is_listed: which of the tokens, [tokens] bool.
        keys: [tokens] int32.
        token_ids: [tokens] int32.
        CAPACITY: of the list.
    """
    number = is_listed.to(tl.int32)
    start = tl.atomic_add(counter, tl.sum(number, 0), sem="relaxed")
    at = start + tl.cumsum(number, 0) - 1
    packed = (keys.to(tl.int64) << 32) | token_ids.to(tl.int64)
    tl.store(listed + at, packed, mask=is_listed & (at < CAPACITY))


@triton.jit
def load_tokens(logits, listed, num_listed, start, count, best, temperature, CHUNK: tl.constexpr):
    """Token ids and keys of [CHUNK] tokens from `start` on; NO_KEY behind `count`.

    Args:
        logits: of the row, any float dtype.
        listed: of `append_tokens`.
        num_listed: `count`, or 0 where the row's first `count` tokens are meant.
        start: of the chunk.
        count: of tokens in all.
        best: largest logit of the row, sound.
        temperature: above 0.
        CHUNK: tokens to load.
    """
    at = start + tl.arange(0, CHUNK)
    is_token = at < count
    if num_listed > 0:
        packed = tl.load(listed + at, mask=is_token, other=0)
        token_ids, keys = packed.to(tl.int32), (packed >> 32).to(tl.int32)
    else:
        sound = make_sound(tl.load(logits + at, mask=is_token, other=0.0))
        token_ids, keys = at, key_of(distance_of(sound, best, temperature))
    return token_ids, tl.where(is_token, keys, NO_KEY)


@triton.jit
def _measure_of(keys, BY_WEIGHT: tl.constexpr):
    """What each token adds to the measure, int64."""
    return weight_of(keys) if BY_WEIGHT else tl.where(keys < NO_KEY, 1, 0).to(tl.int64)


@triton.jit
def smallest_key_that_reaches(
    target, logits, listed, num_listed, count, best, temperature,
    BY_WEIGHT: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The smallest key such that the tokens up to it reach the target; NO_KEY if all do not.

    The target is above 0: in units BY_WEIGHT, else a number of tokens. The rest as in `load_tokens`.
    The first chunk, which is all as a rule, is loaded once.
    """
    _, first = load_tokens(logits, listed, num_listed, 0, count, best, temperature, CHUNK)
    first_measure = _measure_of(first, BY_WEIGHT)
    low = tl.full((), 0, tl.int32)
    high = tl.full((), LAST_KEY, tl.int32)
    while low < high:
        middle = low + (high - low) // 2
        is_in = first <= middle
        reached = tl.where(is_in, first_measure, 0)
        below = tl.where(is_in, first, 0)  # the largest key up to the middle
        above = tl.where(is_in, NO_KEY, first)  # the smallest beyond
        for start in range(CHUNK, count, CHUNK):
            _, keys = load_tokens(
                logits, listed, num_listed, start, count, best, temperature, CHUNK
            )  # fmt: skip
            is_in = keys <= middle
            reached += tl.where(is_in, _measure_of(keys, BY_WEIGHT), 0)
            below = tl.maximum(below, tl.where(is_in, keys, 0))
            above = tl.minimum(above, tl.where(is_in, NO_KEY, keys))
        if tl.sum(reached, 0) >= target:
            high = tl.max(below, 0)
        else:
            low = tl.min(above, 0)
    return low


@triton.jit
def count_up_to(last_key, logits, count, best, temperature, CHUNK: tl.constexpr):
    """How many of the first `count` logits have a key up to last_key, int32."""
    number = tl.zeros([CHUNK], tl.int32)
    for start in range(0, count, CHUNK):
        _, keys = load_tokens(logits, logits, 0, start, count, best, temperature, CHUNK)
        number += ((keys <= last_key) & (keys < NO_KEY)).to(tl.int32)
    return tl.sum(number, 0)


@triton.jit
def weight_of_best(
    top_k, last_key, logits, listed, num_listed, count, best, temperature, CHUNK: tl.constexpr
):
    """Weight of the top_k best tokens, of equals as many as it takes; last_key is the last one's."""
    better = tl.zeros([CHUNK], tl.int64)
    weight = tl.zeros([CHUNK], tl.int64)
    for start in range(0, count, CHUNK):
        _, keys = load_tokens(
            logits, listed, num_listed, start, count, best, temperature, CHUNK
        )  # fmt: skip
        better += (keys < last_key).to(tl.int64)
        weight += tl.where(keys < last_key, weight_of(keys), 0)
    return tl.sum(weight, 0) + (top_k - tl.sum(better, 0)) * weight_of(last_key)


@triton.jit
def last_kept_key(
    logits, listed, num_listed, count, best, temperature, top_k, top_p, min_p_key, total, before,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """The key of the smallest score that top_k, then top_p among those, then min_p keep.

    `total` is the weight of the whole row, in units, for top_p without top_k. `before` is what the
    tokens reach that are better than all of these: a number for top_k, units for top_p, 0 for both
    at once. The rest as in `load_limits` and `load_tokens`.
    """
    last = tl.full((), LAST_KEY, tl.int32)
    if top_k > 0:
        target = top_k.to(tl.int64) - before
        last = smallest_key_that_reaches(
            target, logits, listed, num_listed, count, best, temperature, False, CHUNK
        )
    if top_p < 1:
        if top_k > 0:
            total = weight_of_best(
                top_k, last, logits, listed, num_listed, count, best, temperature, CHUNK
            )  # fmt: skip
        target = share_of(total, top_p) - before
        last = smallest_key_that_reaches(
            target, logits, listed, num_listed, count, best, temperature, True, CHUNK
        )
    return tl.minimum(last, min_p_key)  # at most LAST_KEY
