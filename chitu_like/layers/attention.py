"""Attention over the paged cache: store this batch's keys and values, then ask the backend."""

from __future__ import annotations

from torch import Tensor, nn

from chitu_like.attention.base import AttentionBackend, ForwardBatch
from chitu_like.layers.options import LayerOptions
from chitu_like.ops.kv_store import kv_store_op


class Attention(nn.Module):
    """Causal attention of one layer.

    Args:
        layer_index: global, names the layer's cache.
        scale: multiplies q.k.
        window: tokens a query sees, itself included; None: all.
        backend: computes it.
        options: how layers are built.
    """

    def __init__(
        self,
        layer_index: int,
        *,
        scale: float,
        window: int | None,
        backend: AttentionBackend,
        options: LayerOptions,
    ) -> None:
        super().__init__()
        self._layer_index = layer_index
        self._scale = scale
        self._window = window
        self._backend = backend
        self._store = kv_store_op.resolve(options.device, options.dtype, options.op_impl)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, batch: ForwardBatch) -> Tensor:
        """Attend.

        Args:
            q: [num_tokens, num_local_heads, head_dim].
            k: [num_tokens, num_local_kv_heads, head_dim]; written to the layer's cache.
            v: the same.
            batch: planned by the backend.

        Returns: [num_tokens, num_local_heads * head_dim].
        """
        metadata = batch.attn_metadata
        if metadata is None:
            raise ValueError("batch.attn_metadata is not set: call the backend's plan(batch) first")
        cache = batch.kv_caches[self._layer_index]
        self._store(k, v, cache.k, cache.v, batch.slot_mapping)
        out = self._backend.run(q, cache, metadata, scale=self._scale, window=self._window)
        return out.flatten(1)
