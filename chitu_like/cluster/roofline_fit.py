"""The figures of a device from tables of kernel times."""

from __future__ import annotations

import numpy as np

from chitu_like.cluster.nnls import Array
from chitu_like.cluster.roofline import Rate

START = Rate(overhead_s=5e-6, flops_per_s=3e14, bytes_per_s=1.5e12)
STEPS = (1.5, 1.2, 1.1, 1.05, 1.02, 1.01, 1.005)
"""Factors by which a figure is moved while that helps, then the next."""
CLIP = 1.0  # of relative errors, so that a kernel ten times too slow somewhere moves nothing


def relative_errors(rate: Rate, flops: Array, num_bytes: Array, seconds: Array) -> Array:
    """|predicted / measured - 1| of each call."""
    predicted = rate.overhead_s + np.maximum(flops / rate.flops_per_s, num_bytes / rate.bytes_per_s)
    return np.asarray(np.abs(predicted / seconds - 1), dtype=np.float64)


def fit_rate(flops: Array, num_bytes: Array, seconds: Array) -> Rate:
    """The rate whose mean relative error, clipped, is least: found by moving one figure at a time.

    Args:
        flops: [num_calls]; zeros where only bytes count.
        num_bytes: [num_calls].
        seconds: [num_calls] measured.
    """
    rate, error = START, _mean_error(START, flops, num_bytes, seconds)
    for step in STEPS:
        while True:
            tried = [
                (_mean_error(r, flops, num_bytes, seconds), r) for r in _neighbours(rate, step)
            ]
            best, candidate = min(tried, key=lambda pair: pair[0])
            if best >= error - 1e-12:
                break
            rate, error = candidate, best
    return rate


def _mean_error(rate: Rate, flops: Array, num_bytes: Array, seconds: Array) -> float:
    return float(np.minimum(relative_errors(rate, flops, num_bytes, seconds), CLIP).mean())


def _neighbours(rate: Rate, step: float) -> list[Rate]:
    o, f, b = rate.overhead_s, rate.flops_per_s, rate.bytes_per_s
    moved = [(o * s, f, b) for s in (step, 1 / step)]
    moved += [(o, f * s, b) for s in (step, 1 / step)]
    moved += [(o, f, b * s) for s in (step, 1 / step)]
    return [Rate(overhead_s=x, flops_per_s=y, bytes_per_s=z) for x, y, z in moved]
