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

_SOUND_LOGIT = tl.constexpr(draw.SOUND_LOGIT)
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
    """Float32 without NaN or infinity, like make_sound of ops/draw.py."""
    logits = logits.to(tl.float32)
    is_lowest = (logits != logits) | (logits == float("-inf"))
    logits = tl.where(logits == float("inf"), _SOUND_LOGIT, logits)
    return tl.where(is_lowest, -_SOUND_LOGIT, logits)


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
def load_tokens(logits, listed, num_listed, start, count, best, temperature, CHUNK: tl.constexpr):
    """Token ids and keys of [CHUNK] tokens from `start` on; NO_KEY behind `count`.

    Args:
        logits: of the row, any float dtype.
        listed: [num_listed] int32 token ids.
        num_listed: `count`, or 0 where the row's first `count` tokens are meant.
        start: of the chunk.
        count: of tokens in all.
        best: largest logit of the row, sound.
        temperature: above 0.
        CHUNK: tokens to load.
    """
    at = start + tl.arange(0, CHUNK)
    is_token = at < count
    is_listed = at < num_listed
    token_ids = tl.where(is_listed, tl.load(listed + at, mask=is_listed, other=0), at)
    sound = make_sound(tl.load(logits + token_ids, mask=is_token, other=0.0))
    keys = tl.div_rn(best - sound, temperature).to(tl.int32, bitcast=True)
    return token_ids, tl.where(is_token, keys, NO_KEY)


@triton.jit
def smallest_key_that_reaches(
    target, logits, listed, num_listed, count, best, temperature,
    BY_WEIGHT: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The smallest key such that the tokens up to it reach the target; NO_KEY if all do not.

    The target is above 0: in units BY_WEIGHT, else a number of tokens. The rest as in `load_tokens`.
    """
    low = tl.full((), 0, tl.int32)
    high = tl.full((), LAST_KEY, tl.int32)
    while low < high:
        middle = low + (high - low) // 2
        reached = tl.zeros([CHUNK], tl.int64)
        below = tl.zeros([CHUNK], tl.int32)  # the largest key up to the middle
        above = tl.full([CHUNK], NO_KEY, tl.int32)  # the smallest beyond
        for start in range(0, count, CHUNK):
            _, keys = load_tokens(
                logits, listed, num_listed, start, count, best, temperature, CHUNK
            )  # fmt: skip
            is_in = keys <= middle
            if BY_WEIGHT:
                reached += tl.where(is_in, weight_of(keys), 0)
            else:
                reached += is_in.to(tl.int64)
            below = tl.maximum(below, tl.where(is_in, keys, 0))
            above = tl.minimum(above, tl.where(is_in, NO_KEY, keys))
        if tl.sum(reached, 0) >= target:
            high = tl.max(below, 0)
        else:
            low = tl.min(above, 0)
    return low


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
    logits, listed, num_listed, count, best, temperature, top_k, top_p, min_p_key, total,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """The key of the smallest score that top_k, then top_p among those, then min_p keep.

    The total is the weight of the whole row, in units; the rest as in `load_limits`, `load_tokens`.
    """
    last = tl.full((), LAST_KEY, tl.int32)
    if top_k > 0:
        last = smallest_key_that_reaches(
            top_k.to(tl.int64), logits, listed, num_listed, count, best, temperature, False, CHUNK
        )
    if top_p < 1:
        if top_k > 0:
            total = weight_of_best(
                top_k, last, logits, listed, num_listed, count, best, temperature, CHUNK
            )  # fmt: skip
        target = share_of(total, top_p)
        last = smallest_key_that_reaches(
            target, logits, listed, num_listed, count, best, temperature, True, CHUNK
        )
    return tl.minimum(last, min_p_key)  # at most LAST_KEY
