"""Prefill by one backend, decode by another: the two phases are bound by different things."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from chitu_like.attention.base import (
    AttentionBackend,
    AttentionMetadata,
    ForwardBatch,
    GraphBackend,
    LayerKVCache,
)


@dataclass(frozen=True, kw_only=True)
class ComposedMetadata(AttentionMetadata):
    """Both parts' plans; None where a batch has no such part."""

    num_decodes: int
    decode: AttentionMetadata | None
    prefill: AttentionMetadata | None


class ComposedBackend:
    """Gives each backend its part of a batch.

    Args:
        prefill: of chunks.
        decode: of the leading requests with one token.
    """

    supports_cuda_graph: ClassVar[bool] = False

    def __init__(self, prefill: AttentionBackend, decode: AttentionBackend) -> None:
        self._prefill, self._decode = prefill, decode

    def plan(self, batch: ForwardBatch) -> ComposedMetadata:
        """See AttentionBackend."""
        num_decodes, num_reqs = batch.num_decodes, len(batch.query_lens)
        decode = prefill = None
        if num_decodes:
            decode = self._decode.plan(batch.requests(slice(num_decodes)))
        if num_decodes < num_reqs:
            prefill = self._prefill.plan(batch.requests(slice(num_decodes, None)))
        return ComposedMetadata(num_decodes=num_decodes, decode=decode, prefill=prefill)

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
        assert isinstance(metadata, ComposedMetadata), f"plan of another backend: {metadata}"
        decode, prefill = metadata.decode, metadata.prefill
        if prefill is None:
            assert decode is not None, "a batch has requests"
            return self._decode.run(q, kv_cache, decode, scale=scale, window=window, out=out)
        if decode is None:
            return self._prefill.run(q, kv_cache, prefill, scale=scale, window=window, out=out)
        n = metadata.num_decodes
        if out is None:
            out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        self._decode.run(q[:n], kv_cache, decode, scale=scale, window=window, out=out[:n])
        self._prefill.run(q[n:], kv_cache, prefill, scale=scale, window=window, out=out[n:])
        return out


class ComposedGraphBackend(ComposedBackend):
    """One whose decodes can be captured: by the backend that computes them."""

    supports_cuda_graph: ClassVar[bool] = True

    def __init__(self, prefill: AttentionBackend, decode: GraphBackend) -> None:
        super().__init__(prefill, decode)
        self._captured = decode

    def plan_capture(self, batch: ForwardBatch) -> ComposedMetadata:
        """See GraphBackend."""
        return ComposedMetadata(
            num_decodes=batch.num_decodes,
            decode=self._captured.plan_capture(batch),
            prefill=None,
        )

    def replan(self, metadata: AttentionMetadata, batch: ForwardBatch) -> None:
        """See GraphBackend."""
        self._captured.replan(_decode_plan(metadata), batch)

    def prepare(self, metadata: AttentionMetadata) -> None:
        """See GraphBackend."""
        self._captured.prepare(_decode_plan(metadata))


def _decode_plan(metadata: AttentionMetadata) -> AttentionMetadata:
    assert isinstance(metadata, ComposedMetadata), f"plan of another backend: {metadata}"
    assert metadata.decode is not None, "captured without decodes"
    return metadata.decode


def compose(prefill: AttentionBackend, decode: AttentionBackend) -> ComposedBackend:
    """One backend of two, which can be captured where `decode` can."""
    if isinstance(decode, GraphBackend):
        return ComposedGraphBackend(prefill, decode)
    return ComposedBackend(prefill, decode)
