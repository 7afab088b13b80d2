"""What the skinny linear kernel can compute around its product, and how it may be cut.

Apart from the kernel (ops/triton/skinny_linear.py), so that tables and plans need no Triton.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

MAX_TOKENS = 64
"""More tokens than that are no longer a matter of reading the weight."""

BUCKETS = (1, 2, 4, 8, 16, 32, MAX_TOKENS)
"""Numbers of tokens that tables know; a number between takes the next one's row."""

MIN_DOT_TOKENS = 16
"""With tensor cores fewer are padded."""

MAX_PLAIN_TOKENS = 4
"""Without tensor cores: every token costs a multiplication and 4 bytes of register a weight held."""


class Epilogue(Enum):
    """What happens to the product before it is written.

    Attributes:
        NONE: nothing.
        SILU_AND_MUL: the first half of the outputs is a gate: silu(gate) * up is written.
        ADD: it is added to what `residual` holds, in place; a norm may be begun behind it.
    """

    NONE = "none"
    SILU_AND_MUL = "silu_and_mul"
    ADD = "add"


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearWork:
    """A product and what stands around it.

    Attributes:
        has_norm: an RMSNorm stands in front, begun by what wrote the inputs.
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


def padded_tokens(tile: SkinnyTile, num_tokens: int) -> int:
    """The tokens that a tile computes with to serve so many."""
    return max(token_bucket(num_tokens), MIN_DOT_TOKENS if tile.uses_dot else 1)
