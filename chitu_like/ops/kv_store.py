"""Write a batch's keys and values into the paged cache."""

from __future__ import annotations

from torch import Tensor

from chitu_like.ops.registry import Op


def kv_store(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor) -> None:
    """Put each token's key and value into its slot.

    Args:
        k: [num_tokens, num_kv_heads, head_dim], any strides but the last's.
        v: the same.
        k_cache: [num_blocks, block_size, num_kv_heads, head_dim], contiguous; modified.
        v_cache: the same.
        slot_mapping: [num_tokens] int64, block id * block_size + offset. Where a slot
            stands twice (rows that pad a batch), it holds one of them afterwards, in part or whole.
    """
    slots = (slot_mapping,)
    k_cache.flatten(0, 1).index_put_(slots, k)
    v_cache.flatten(0, 1).index_put_(slots, v)


kv_store_op = Op("kv_store", kv_store)
