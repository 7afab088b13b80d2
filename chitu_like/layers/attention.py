"""Attention over the paged cache: one layer's cache, and the backend that reads it."""

from __future__ import annotations

from torch import Tensor, nn

from chitu_like.attention.base import AttentionBackend, ForwardBatch, LayerKVCache
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

    def cache(self, batch: ForwardBatch) -> LayerKVCache:
        """Where the batch's keys and values go before `forward` reads them."""
        return batch.kv_caches[self._layer_index]

    def store(self, k: Tensor, v: Tensor, batch: ForwardBatch) -> None:
        """Put keys and values, each [num_tokens, num_local_kv_heads, head_dim], into the cache."""
        self._store(k, v, *self.cache(batch), batch.slot_mapping)

    def forward(self, q: Tensor, batch: ForwardBatch) -> Tensor:
        """Attend to what is in the cache, the batch's own keys and values among it.

        Args:
            q: [num_tokens, num_local_heads, head_dim].
            batch: planned by the backend, or with a seam, which then decides what comes here.

        Returns: [num_tokens, num_local_heads * head_dim].
        """
        out = self.attend(q, batch) if batch.seam is None else batch.seam(self.attend, q)
        return out.flatten(1)

    def attend(self, q: Tensor, batch: ForwardBatch, out: Tensor | None = None) -> Tensor:
        """Let the backend attend; see AttentionBackend.run.

        Args:
            q: [num_tokens, num_local_heads, head_dim].
            batch: planned by the backend.
            out: contiguous, of q's shape, written to and returned; None: a new one.

        Returns: [num_tokens, num_local_heads, head_dim].
        """
        metadata = batch.attn_metadata
        if metadata is None:
            raise ValueError("batch.attn_metadata is not set: call the backend's plan(batch) first")
        return self._backend.run(
            q, self.cache(batch), metadata, scale=self._scale, window=self._window, out=out
        )
