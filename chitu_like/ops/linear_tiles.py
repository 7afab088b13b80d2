"""What the skinny linear kernel can compute around its product, and how it may be cut.

Apart from the kernel (ops/triton/skinny_linear.py), so that tables and plans need no Triton.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

MAX_TOKENS = 16
"""More tokens than that are no longer a matter of reading the weight."""

BUCKETS = (1, 2, 4, 8, MAX_TOKENS)
"""Numbers of tokens that tables know; a number between takes the next one's row."""

MAX_PLAIN_TOKENS = 4
"""Without tensor cores: every token costs a multiplication and 4 bytes of register a weight held."""

MIN_PREFETCH, MAX_PREFETCH = 64, 4096
"""Columns: a line of memory, and what one instruction after another may delay the wait for."""


class Epilogue(Enum):
    """What happens to the product before it is written.

    Attributes:
        NONE: nothing.
        SILU_AND_MUL: the first half of the outputs is a gate: silu(gate) * up is written.
        ADD: it is added to what `residual` holds, in place.
    """

    NONE = "none"
    SILU_AND_MUL = "silu_and_mul"
    ADD = "add"


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearWork:
    """A product and what stands around it.

    Attributes:
        has_norm: an RMSNorm stands in front.
        epilogue: what stands behind.
    """

    has_norm: bool = False
    epilogue: Epilogue = Epilogue.NONE

    @property
    def name(self) -> str:
        """As tables spell it: linear, norm+linear, norm+linear+silu_and_mul, linear+add."""
        front = "norm+" if self.has_norm else ""
        behind = "" if self.epilogue is Epilogue.NONE else f"+{self.epilogue.value}"
        return f"{front}linear{behind}"

    @classmethod
    def from_name(cls, name: str) -> LinearWork:
        """The work that is spelled `name`. Raises: ValueError for no such name."""
        for work in ALL_WORK:
            if work.name == name:
                return work
        raise ValueError(f"{name!r} is none of {', '.join(work.name for work in ALL_WORK)}")


ALL_WORK = tuple(
    LinearWork(has_norm=has_norm, epilogue=epilogue)
    for has_norm in (False, True)
    for epilogue in Epilogue
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SkinnyTile:
    """How the kernel is cut.

    Attributes:
        rows: outputs of a program. A power of two.
        columns: inputs it takes at once, likewise.
        splits: programs that share the inputs of `rows` outputs.
        num_warps, num_stages: as Triton has them.
        uses_dot: on tensor cores, where rows and columns are 16 at least; else for at most
            MAX_PLAIN_TOKENS tokens.
        starts_early: with programmatic dependent launch, beside the end of the kernel before.
        prefetch: columns of the program's weights asked into L2 before the wait for x, a power of
            two, 0 for none; only with `starts_early`.
    """

    rows: int
    columns: int
    splits: int
    num_warps: int
    num_stages: int
    uses_dot: bool
    starts_early: bool = False
    prefetch: int = 0

    def serves(self, num_tokens: int) -> bool:
        """Whether it takes so many tokens."""
        return 0 < num_tokens <= (MAX_TOKENS if self.uses_dot else MAX_PLAIN_TOKENS)

    def num_programs(self, num_rows: int) -> int:
        """Programs of a launch on a weight of `num_rows` outputs."""
        return -(-num_rows // self.rows) * self.splits


def token_bucket(num_tokens: int) -> int:
    """The one of BUCKETS that stands for so many tokens, MAX_TOKENS at most."""
    return 1 << (num_tokens - 1).bit_length()


# (rows, columns, warps, stages). Without tensor cores, columns are a multiple of 256 a warp (in 16
# bits): then the threads that load a piece of x are those that multiply with it, and the loop has no
# barrier. Rows times columns times tokens are limited by the registers that hold the sums.
_PLAIN_SHAPES = {
    1: (
        (4, 1024, 4, 1),
        (8, 1024, 4, 1),
        (8, 512, 2, 1),
        (4, 2048, 4, 1),
        (4, 512, 2, 1),
        (8, 256, 1, 1),
        (16, 256, 1, 1),
        (8, 1024, 4, 3),
    ),
    2: ((4, 1024, 4, 1), (4, 512, 2, 1), (8, 256, 1, 1)),
    4: ((2, 1024, 4, 1), (4, 512, 2, 1), (4, 256, 1, 1)),
}
_DOT_SHAPES = (
    (64, 128, 4, 4),
    (64, 64, 4, 6),
    (32, 256, 4, 4),
    (16, 256, 4, 4),
    (128, 64, 4, 4),
    (128, 128, 8, 3),
    (32, 128, 4, 4),
    (16, 512, 4, 3),
)
_SPLITS = (1, 2, 3, 4, 6, 8)
_MAX_CANDIDATES = 14


def candidates(
    num_tokens: int, out_features: int, in_features: int, *, num_multiprocessors: int
) -> list[SkinnyTile]:
    """Tiles worth measuring: GUESSES, of which nothing is known but that none spills registers.

    Of every shape the number of splits that leaves the fewest multiprocessors without a program at
    the end, then the next best number of the first shapes.

    Args:
        num_tokens: one of BUCKETS.
        out_features: rows of the weight.
        in_features: its columns.
        num_multiprocessors: of the device.
    """

    def idleness(tile: SkinnyTile) -> tuple[bool, float, int]:
        programs = tile.num_programs(out_features)
        rounds = -(-programs // num_multiprocessors)
        # One program a multiprocessor keeps too few loads in flight; a tenth idle is as good as none.
        return rounds == 1, max(1.1, rounds * num_multiprocessors / programs), tile.splits

    shapes = [(shape, False) for shape in _PLAIN_SHAPES.get(num_tokens, ())]
    shapes += [(shape, True) for shape in (_DOT_SHAPES if num_tokens > 1 else _DOT_SHAPES[:2])]
    best, second = [], []
    for (rows, columns, num_warps, num_stages), uses_dot in shapes:
        tiles = [
            SkinnyTile(
                rows=rows,
                columns=columns,
                splits=splits,
                num_warps=num_warps,
                num_stages=num_stages,
                uses_dot=uses_dot,
            )
            for splits in _SPLITS
            if splits == 1 or splits * columns <= in_features
        ]
        tiles.sort(key=idleness)
        best.append(tiles[0])
        second += tiles[1:2]
    return [*best, *second[: _MAX_CANDIDATES - len(best)]]


def early_variants(tile: SkinnyTile, in_features: int) -> list[SkinnyTile]:
    """The tile with programmatic dependent launch: no prefetch, a step's, all of the program's."""
    own = 1 << ((in_features // tile.splits).bit_length() - 1)
    lengths = {0, min(own, 2 * tile.columns), min(own, MAX_PREFETCH)}
    return [
        replace(tile, starts_early=True, prefetch=length if length >= MIN_PREFETCH else 0)
        for length in sorted(lengths)
    ]
