"""What stands between the merged qkv projection and attention: head norms, rotation, KV store."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from chitu_like.ops.kv_store import kv_store
from chitu_like.ops.norm import rms_norm
from chitu_like.ops.registry import Op
from chitu_like.ops.rotary import Rotation, apply_rotary


class HeadNorms(NamedTuple):
    """RMS norms of each query and each key head: the weights [head_dim] and their eps."""

    q: Tensor
    k: Tensor
    eps: float


def qk_norm_rope_store(
    qkv: Tensor,
    norms: HeadNorms | None,
    angles: Rotation,
    interleaved: bool,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
) -> Tensor:
    """Normalise and rotate queries and keys, and put keys and values into their slots.

    Args:
        qkv: [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim]: the heads of the queries, of
            the keys, of the values; may be modified.
        norms: of queries and keys, before they are rotated; None: none.
        angles: of these tokens, made with the same `interleaved`; see `apply_rotary`.
        interleaved: rotated pairs are neighbours, else halves.
        k_cache: [num_blocks, block_size, num_kv_heads, head_dim], contiguous; MODIFIED.
        v_cache: the same.
        slot_mapping: see `kv_store`.

    Returns: the queries, [num_tokens, num_heads, head_dim]; may be a part of qkv.
    """
    num_kv, head_dim = k_cache.shape[-2:]
    heads = qkv.unflatten(-1, (-1, head_dim))
    qk, v = heads[:, :-num_kv], heads[:, -num_kv:]
    if norms is None:
        qk = apply_rotary(qk, angles, interleaved)
        q, k = qk[:, :-num_kv], qk[:, -num_kv:]
    else:
        q = apply_rotary(rms_norm(qk[:, :-num_kv], norms.q, norms.eps), angles, interleaved)
        k = apply_rotary(rms_norm(qk[:, -num_kv:], norms.k, norms.eps), angles, interleaved)
    kv_store(k, v, k_cache, v_cache, slot_mapping)
    return q


qk_norm_rope_store_op = Op("qk_norm_rope_store", qk_norm_rope_store)
