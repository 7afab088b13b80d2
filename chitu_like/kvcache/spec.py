"""How large a KV block is: the one formula that runner, planner, simulator and doctor share."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class KVCacheSpec:
    """The keys and values one rank keeps.

    Attributes:
        layers: GLOBAL indices of the layers this rank holds.
        num_kv_heads: of this rank, in each layer.
        head_dim: of keys and of values.
        dtype_bytes: bytes a number.
        block_size: tokens a block.
    """

    layers: tuple[int, ...]
    num_kv_heads: int
    head_dim: int
    dtype_bytes: int
    block_size: int

    @property
    def bytes_per_token(self) -> int:
        """Keys and values of one token in all layers of this rank."""
        return 2 * len(self.layers) * self.num_kv_heads * self.head_dim * self.dtype_bytes

    @property
    def bytes_per_block(self) -> int:
        """Keys and values of one block in all layers of this rank."""
        return self.bytes_per_token * self.block_size

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens of one request."""
        return -(-num_tokens // self.block_size)
