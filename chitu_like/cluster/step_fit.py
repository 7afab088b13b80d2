"""Seconds of a step by fitted formulas: DistServe's, and one of our own.

DistServe's (arXiv:2401.09670, its simulator) are straight in tokens, context and batch. Ours adds up
curves: a step of few tokens takes as long as reading the weights, one of many as long as multiplying
with them, and what lies between differs by device; so each term is a rising line through a few points.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import msgspec

from chitu_like.cluster.cost_model import BatchShape
from chitu_like.cluster.curve import Curve
from chitu_like.core.errors import ConfigError

Coefficients = tuple[float, float, float]
Points = tuple[tuple[float, float], ...]

PP_MS = 1.0  # what each stage of a pipeline adds to a prompt, in DistServe's formula
FIRST_STAGE_MS, FIRST_STAGE_MS_PER_TOKEN = 2.0, 1e-4
SMALL_BATCH = 95
"""Decodes from which DistServe's second set of coefficients holds, where its file does not say."""


class DistServeFit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Coefficients in milliseconds of the whole model on tp devices, in the words of its files.

    Attributes:
        prefill: a + b * sum(len) + c * sum(len^2).
        decoding_smallbs, decoding_largebs: a + b * sum(context) + c * batch.
        decoding_large_small_bs_threshold: batches of so many decodes are large.
    """

    prefill: Coefficients
    decoding_smallbs: Coefficients
    decoding_largebs: Coefficients
    decoding_large_small_bs_threshold: int = SMALL_BATCH

    def prefill_ms(self, num_tokens: float, sum_of_squares: float) -> float:
        """Of prompts on one stage that holds all layers, but for what stages add."""
        a, b, c = self.prefill
        return a + b * num_tokens + c * sum_of_squares

    def decode_ms(self, num_decodes: int, context: float) -> float:
        """Of decodes, likewise."""
        is_small = num_decodes < self.decoding_large_small_bs_threshold
        a, b, c = self.decoding_smallbs if is_small else self.decoding_largebs
        return a + b * context + c * num_decodes


@dataclass(frozen=True, kw_only=True)
class DistServeStep:
    """StepCost by DistServe's formulas.

    Attributes:
        fit: the coefficients.
        pp: stages; layers of the model over layers of this one, so it need not be whole.
        is_first: requests enter here.
    """

    fit: DistServeFit
    pp: float = 1.0
    is_first: bool = True

    def seconds(self, shape: BatchShape) -> float:
        """See StepCost. Prompts and decodes of one batch take their times one after the other."""
        milliseconds = 0.0
        tokens = shape.num_prefill_tokens
        if tokens:
            squares = 2 * shape.prefill_pairs - tokens  # t tokens alone have t (t + 1) / 2 pairs
            milliseconds += self.fit.prefill_ms(tokens, squares) / self.pp + PP_MS * self.pp
        if shape.num_decodes:
            milliseconds += self.fit.decode_ms(shape.num_decodes, shape.decode_context) / self.pp
        if self.is_first and milliseconds:
            # In that simulator a decode's tokens are all it attends to.
            milliseconds += FIRST_STAGE_MS + FIRST_STAGE_MS_PER_TOKEN * (
                tokens + shape.decode_context
            )
        return max(0.0, milliseconds) / 1e3  # a line through large batches may fall below 0


class Terms(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the seconds of one kind of step are made of; curves as (amount, seconds).

    Attributes:
        constant_s: of any such step.
        tokens: by tokens of chunks and decodes together.
        pairs: by BatchShape.prefill_pairs.
        context: by BatchShape.decode_context.
        before: by BatchShape.prefill_context.
        chunk_s, decode_s: of each chunk, of each decode, besides.
    """

    constant_s: float
    tokens: Points
    pairs: Points = ((0.0, 0.0),)
    context: Points = ((0.0, 0.0),)
    before: Points = ((0.0, 0.0),)
    chunk_s: float = 0.0
    decode_s: float = 0.0


class StepFit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A fit of the whole model on tp devices.

    Attributes:
        decodes: of steps of decodes alone, which other kernels compute than the rest.
        mixed: of steps with chunks.
        most_tokens: of a step that was measured; beyond, the last lines go on.
        most_decodes: likewise.
        head_layers: the head's weights over those of a layer.
    """

    decodes: Terms
    mixed: Terms
    most_tokens: int
    most_decodes: int
    head_layers: float = 0.0

    def share(self, num_layers: int, held: int, *, is_last: bool) -> float:
        """Of a step's time, what a stage with `held` layers takes: time goes with weights."""
        head = self.head_layers
        return (held + (head if is_last else 0.0)) / (num_layers + head)


class _Compiled:
    """Terms ready to be asked a million times."""

    __slots__ = (
        "_before",
        "_chunk_s",
        "_constant_s",
        "_context",
        "_decode_s",
        "_pairs",
        "_tokens",
    )

    def __init__(self, terms: Terms, share: float, where: str) -> None:
        self._tokens = _curve(terms.tokens, share, f"{where}.tokens")
        self._pairs = _curve(terms.pairs, share, f"{where}.pairs")
        self._context = _curve(terms.context, share, f"{where}.context")
        self._before = _curve(terms.before, share, f"{where}.before")
        for name in ("constant_s", "chunk_s", "decode_s"):
            if not 0 <= getattr(terms, name) < 1e6:
                raise ConfigError(f"{where}.{name}={getattr(terms, name)}: give seconds, 0 or more")
        self._constant_s = terms.constant_s * share
        self._chunk_s = terms.chunk_s * share
        self._decode_s = terms.decode_s * share

    def seconds(self, shape: BatchShape) -> float:
        return (
            self._constant_s
            + self._tokens(shape.num_prefill_tokens + shape.num_decodes)
            + self._pairs(shape.prefill_pairs)
            + self._context(shape.decode_context)
            + self._before(shape.prefill_context)
            + self._chunk_s * shape.num_chunks
            + self._decode_s * shape.num_decodes
        )


class FittedStep:
    """StepCost by our fit.

    Args:
        fit: of the whole model.
        share: of its time that is this stage's: layers and head, counted by their weights.
        where: file and key, for messages.

    Raises: ConfigError for points that are no curve.
    """

    def __init__(self, fit: StepFit, *, share: float = 1.0, where: str = "fit") -> None:
        self._decodes = _Compiled(fit.decodes, share, f"{where}.decodes")
        self._mixed = _Compiled(fit.mixed, share, f"{where}.mixed")

    def seconds(self, shape: BatchShape) -> float:
        """See StepCost."""
        if shape.num_chunks:
            return self._mixed.seconds(shape)
        return self._decodes.seconds(shape) if shape.num_decodes else 0.0


def _curve(points: Points, share: float, where: str) -> Curve:
    for (x, before), (_, after) in pairwise(points):
        if after < before:
            raise ConfigError(f"{where}: {before:g} s at {x:g}, then {after:g} s: give rising ones")
    try:
        return Curve([x for x, _ in points], [share * y for _, y in points])
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
