"""The noise of ops/sampling.py inside kernels.

Keys, hashes and uniform numbers are the reference's integers, bit for bit. `tl.log` of float32 is the
device library's logarithm, like torch's on CUDA. (An approximate one, such as lg2.approx, would be
useless near 1, where large noise comes from.) Libraries and devices may differ in a logarithm's last
bit, and so in a token, but only where two sums of score and noise lie within 1e-5 of each other.

Two logarithms a token are most of the work where a whole vocabulary may be drawn. `may_win` spares
them: once a sum of score and noise is known that somebody reaches, few tokens can reach it too.
"""

from __future__ import annotations

import triton
import triton.language as tl

from chitu_like.ops import draw

_SEED_LOW, _SEED_HIGH = tl.constexpr(draw.SEED_LOW), tl.constexpr(draw.SEED_HIGH)


@triton.jit
def _mix(x):
    """`mix` without a key, of uint32: it wraps, and shifts zeros in."""
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= x >> 15
    x *= 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _mix_with(x, key):
    """`mix` with a key."""
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= x >> 15
    x += key
    x *= 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def noise_keys(row_params, position):
    """key0 and key1 of a row: uint32.

    Args:
        row_params: of the row's slot (ops/draw.py).
        position: output position, int64.
    """
    low = tl.load(row_params + _SEED_LOW).to(tl.uint32, bitcast=True)
    high = tl.load(row_params + _SEED_HIGH).to(tl.uint32, bitcast=True)
    key0 = _mix(_mix_with(low, high) + position.to(tl.uint32))
    return key0, _mix(_mix_with(high ^ 0x9E3779B9, low) ^ key0)


@triton.jit
def noise_bits(token_ids, key0, key1):
    """32 bits for each token.

    Args:
        token_ids: int32.
        key0: of `noise_keys`.
        key1: of `noise_keys`.
    """
    return _mix_with(_mix(token_ids.to(tl.uint32, bitcast=True)) ^ key0, key1)


@triton.jit
def gumbel_noise(token_ids, key0, key1):
    """Noise of each token, float32; arguments of `noise_bits`."""
    uniform = ((noise_bits(token_ids, key0, key1) >> 9).to(tl.float32) + 0.5) * 2.0**-23
    return -tl.log(-tl.log(uniform))


@triton.jit
def may_win(token_ids, scores, floor, key0, key1):
    """Whether score and noise of each token may come to `floor`; false only where they do not.

    noise >= x means -log(uniform) <= exp(-x), and -log(uniform) is at least 1 - uniform. So it takes
    no logarithm to see of most tokens that they lose. What errors of rounding there are, in scores,
    noise and powers, is less than the thousandth, and the two units of the sum, that are added.

    Args:
        token_ids: int32.
        scores: float32, at most 0, right to 1e-4 where above -20.
        floor: a sum of score and noise, float32.
        key0: of `noise_keys`.
        key1: of `noise_keys`.
    """
    # 1 + (1 - uniform), to half a unit, put together from the bits.
    bits = (noise_bits(token_ids, key0, key1) ^ 0xFFFFFFFF) >> 9
    above = (bits | 0x3F800000).to(tl.float32, bitcast=True)
    return above <= 1.0 + 2.0**-21 + 1.001 * tl.exp2((scores - floor) * 1.4426950408889634)
