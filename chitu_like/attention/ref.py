"""The `ref` backend: masked softmax written out in float32, one request at a time. Slow and true."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from chitu_like.attention.base import (
    AttentionMetadata,
    AttentionSpec,
    ForwardBatch,
    LayerKVCache,
    attention_backends,
)


@dataclass(frozen=True, kw_only=True)
class RefMetadata(AttentionMetadata):
    """The batch's layout as it came."""

    block_tables: Tensor
    query_lens: list[int]
    context_lens: list[int]


@attention_backends.register("ref")
class RefBackend:
    """Says what is right for every shape, device and dtype.

    Args:
        spec: the model's attention.
    """

    supports_cuda_graph: ClassVar[bool] = False

    def __init__(self, spec: AttentionSpec) -> None:
        self._group_size = spec.num_heads // spec.num_kv_heads

    @classmethod
    def supports(cls, spec: AttentionSpec) -> str | None:
        """See AttentionBackend: everything."""
        return None

    def plan(self, batch: ForwardBatch) -> RefMetadata:
        """See AttentionBackend."""
        return RefMetadata(
            block_tables=batch.block_tables,
            query_lens=batch.query_lens,
            context_lens=batch.context_lens,
        )

    def run(
        self,
        q: Tensor,
        kv_cache: LayerKVCache,
        metadata: AttentionMetadata,
        *,
        scale: float,
        window: int | None,
        out: Tensor | None = None,
    ) -> Tensor:
        """See AttentionBackend."""
        assert isinstance(metadata, RefMetadata), f"plan of another backend: {metadata}"
        out = torch.empty_like(q) if out is None else out
        start = 0
        for row, (query_len, context_len) in enumerate(
            zip(metadata.query_lens, metadata.context_lens, strict=True)
        ):
            end = start + query_len
            blocks = metadata.block_tables[row].long()
            k = kv_cache.k[blocks].flatten(0, 1)[
                :context_len
            ]  # [context_len, num_kv_heads, head_dim]
            v = kv_cache.v[blocks].flatten(0, 1)[:context_len]
            out[start:end] = self._attend(q[start:end], k, v, scale, window)
            start = end
        return out

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
        k = k.float().repeat_interleave(self._group_size, dim=1)
        v = v.float().repeat_interleave(self._group_size, dim=1)
        scores = torch.einsum("qhd,khd->hqk", q.float(), k) * scale
        scores = scores.masked_fill(~visible(q.shape[0], k.shape[0], window, q.device), -torch.inf)
        return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).to(q.dtype)


def visible(query_len: int, context_len: int, window: int | None, device: torch.device) -> Tensor:
    """Which keys each query sees: [query_len, context_len] bool.

    The queries are the last `query_len` tokens of the context.
    """
    queries = torch.arange(context_len - query_len, context_len, device=device).unsqueeze(1)
    distance = queries - torch.arange(context_len, device=device)
    seen = distance >= 0
    return seen if window is None else seen & (distance < window)
