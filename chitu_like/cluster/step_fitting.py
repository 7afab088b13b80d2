"""Fit the terms of a step to measured times, by least squares of the RELATIVE error.

Rising lines through knots keep any shape that grows: flat while weights are read, steep while they
are multiplied with. No term can be negative, so none can make up for another's error elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from chitu_like.cluster.cost_model import BatchShape, StepCost
from chitu_like.cluster.nnls import Array, nnls
from chitu_like.cluster.step_fit import Points, StepFit, Terms
from chitu_like.core.errors import ConfigError

MIN_POINTS = 8  # of each kind; fewer say nothing about curves
TOKEN_RATIO, OTHER_RATIO = 2.0, 4.0  # from knot to knot
ROBUST_ROUNDS = 4
NOISE = 1e-3  # relative; no clock tells less


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A step that was run.

    Attributes:
        shape: of its batch.
        seconds: median.
    """

    shape: BatchShape
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Residuals:
    """Relative errors |predicted / measured - 1|.

    Attributes:
        count: of points.
        median, p95, worst: of the errors; 0 without points.
    """

    count: int
    median: float
    p95: float
    worst: float


def residuals(cost: StepCost, points: Sequence[Measured]) -> Residuals:
    """How far a cost is from measured points."""
    errors = [abs(cost.seconds(point.shape) / point.seconds - 1) for point in points] or [0.0]
    median, p95 = np.quantile(errors, [0.5, 0.95])
    return Residuals(
        count=len(points), median=float(median), p95=float(p95), worst=float(max(errors))
    )


def fit_steps(points: Sequence[Measured], *, head_layers: float = 0.0) -> StepFit:
    """Fit steps of decodes and steps with chunks, each on their own.

    Args:
        points: of the whole model.
        head_layers: the head's weights over those of a layer.

    Raises: ConfigError with too few points of a kind.
    """
    mixed = [point for point in points if point.shape.num_chunks]
    decodes = [point for point in points if not point.shape.num_chunks]
    for kind, found in (("with chunks", mixed), ("of decodes alone", decodes)):
        if len(found) < MIN_POINTS:
            raise ConfigError(f"{len(found)} steps {kind} were measured: a fit takes {MIN_POINTS}")
    return StepFit(
        decodes=_fit_terms(decodes),
        mixed=_fit_terms(mixed),
        most_tokens=max(_tokens(point.shape) for point in points),
        most_decodes=max(point.shape.num_decodes for point in points),
        head_layers=head_layers,
    )


def _tokens(shape: BatchShape) -> int:
    return shape.num_prefill_tokens + shape.num_decodes


def _fit_terms(points: Sequence[Measured]) -> Terms:
    shapes = [point.shape for point in points]
    amounts = np.array(
        [[_tokens(s), s.prefill_pairs, s.decode_context, s.prefill_context] for s in shapes],
        dtype=np.float64,
    ).T
    knots = [_knots(amounts[0], TOKEN_RATIO, from_zero=False)]
    knots += [_knots(x, OTHER_RATIO, from_zero=True) for x in amounts[1:]]
    linear = np.array([[1.0, s.num_chunks, s.num_decodes] for s in shapes])
    if not any(s.num_chunks for s in shapes):  # decodes alone: their number is what `tokens` counts
        linear[:, 1:] = 0.0
    blocks = [linear, *(_rises(x, k) for x, k in zip(amounts, knots, strict=True))]
    seconds = np.array([point.seconds for point in points])
    found = _robust_nnls(np.hstack(blocks) / seconds[:, None])
    parts = np.split(found, np.cumsum([block.shape[1] for block in blocks])[:-1])
    constant_s, chunk_s, decode_s = map(float, parts[0])
    tokens, pairs, context, before = map(_points, knots, parts[1:])
    return Terms(
        constant_s=constant_s,
        chunk_s=chunk_s,
        decode_s=decode_s,
        tokens=tokens,
        pairs=pairs,
        context=context,
        before=before,
    )


def _robust_nnls(a: Array) -> Array:
    """The x >= 0 that makes a x nearly 1 (Huber's loss): steps that something else slowed count less.

    A row whose error is beyond twice the median pulls as if it were there, not farther.
    """
    weights = np.ones(len(a))
    for _ in range(ROBUST_ROUNDS):
        roots = np.sqrt(weights)
        found = nnls(a * roots[:, None], roots)
        errors = np.abs(a @ found - 1)
        limit = max(2 * float(np.median(errors)), NOISE)
        weights = limit / np.maximum(errors, limit)
    return found


def _knots(x: Array, ratio: float, *, from_zero: bool) -> Array:
    """Amounts where lines meet: from the least to the most measured, each `ratio` times the last."""
    positive = x[x > 0]
    if not len(positive):
        return np.zeros(1)
    low, high = float(positive.min()), float(positive.max())
    count = max(1, round(np.log(high / low) / np.log(ratio))) if high > low else 0
    knots = np.geomspace(low, high, count + 1)
    return np.concatenate(([0.0], knots)) if from_zero else knots


def _rises(x: Array, knots: Array) -> Array:
    """[num_points, num_knots - 1] the part of each line that a point has climbed, 0 to 1 or beyond."""
    if len(knots) == 1:
        return np.zeros((len(x), 0))
    climbed = (x[:, None] - knots[:-1]) / np.diff(knots)
    return np.clip(climbed, 0.0, 1.0)


def _points(knots: Array, rises: Array) -> Points:
    heights = np.concatenate(([0.0], np.cumsum(rises)))
    return tuple((float(x), float(y)) for x, y in zip(knots, heights, strict=True))
