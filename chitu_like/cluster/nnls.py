"""Least squares without negative coefficients (Lawson and Hanson 1974, chapter 23)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def nnls(a: Array, b: Array) -> Array:
    """The x >= 0 that makes |a x - b| least.

    Columns are scaled to equal lengths first, so that units do not matter.

    Args:
        a: [num_rows, num_columns], not modified.
        b: [num_rows].

    Returns: [num_columns].
    """
    scale = np.linalg.norm(a, axis=0)
    scale[scale == 0] = 1.0
    columns = a / scale
    num_columns = columns.shape[1]
    x = np.zeros(num_columns)
    free = np.zeros(num_columns, dtype=bool)
    tolerance = 1e-10 * max(1.0, float(np.linalg.norm(b)))
    for _ in range(3 * num_columns):
        gradient = np.where(free, -np.inf, columns.T @ (b - columns @ x))
        best = int(np.argmax(gradient))
        if gradient[best] <= tolerance:
            break
        free[best] = True
        x = _settle(columns, b, x, free)
    return np.asarray(x / scale, dtype=np.float64)


def _settle(a: Array, b: Array, x: Array, free: NDArray[np.bool_]) -> Array:
    """Solve for the free columns; one that would turn negative is fixed at 0, and again."""
    while True:
        wanted = np.zeros_like(x)
        wanted[free] = np.linalg.lstsq(a[:, free], b, rcond=None)[0]
        negative = free & (wanted <= 0)
        if not negative.any():
            return wanted
        # As far towards the solution as nothing turns negative; x > 0 or just freed there.
        step = float(np.min(x[negative] / np.maximum(x[negative] - wanted[negative], 1e-300)))
        x = x + step * (wanted - x)
        free &= x > 1e-14
        x = np.where(free, x, 0.0)
