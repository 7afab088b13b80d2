"""The `sdpa` backend: torch's scaled_dot_product_attention over the paged cache.

What a step costs here is reading keys and values, and calls:

- A lone decode, or a chunk, whose blocks lie one behind the other (always so with the skew layout,
  whose one block holds the whole context) is read in place.
- Decodes that stand together are gathered, several at a time, into a padded batch; requests of
  similar length together, so padding stays small, and no more than stays in the processor's cache:
  a gather that spills is read from memory three times instead of once. Padding repeats the
  request's own last token under a mask, so no request ever touches another's numbers.
- The query heads that share a key head are attended as the rows of ONE head, so keys are not
  repeated. `enable_gqa` would take torch's slow path on a CPU (12 times the time at one token).

Measured on two quiet Zen 5 cores, two threads, bfloat16, blocks of 32, us a layer, in place one call
a request against gathered: 14 query and 2 key heads of 64, 16 requests of 64 tokens 297 / 109, of 512
tokens 634 / 475, of 4096 tokens 8359 / 4628; 16 and 8 heads of 128, 16 requests of 256 tokens
1387 / 1524, of 2048 tokens 19838 / 15322. One request alone: 56 in place, 103 gathered.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from chitu_like.attention.base import (
    AttentionMetadata,
    AttentionSpec,
    ForwardBatch,
    LayerKVCache,
    attention_backends,
)
from chitu_like.attention.sdpa_plan import Chunk, Decodes, SdpaMetadata, SdpaPlanner, Where

GATHER_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}
"""Keys and values gathered at once: a share of the last-level cache; bounded memory on CUDA."""


@attention_backends.register("sdpa")
class SdpaBackend:
    """Fast on CPUs; runs on CUDA too.

    Args:
        spec: the model's attention.
    """

    supports_cuda_graph: ClassVar[bool] = False

    def __init__(self, spec: AttentionSpec) -> None:
        self._spec = spec
        if spec.device.type == "cuda":
            # cuDNN plans anew for each length it sees: 40 ms in every decode step on an H200.
            torch.backends.cuda.enable_cudnn_sdp(False)
        self._group_size = spec.num_heads // spec.num_kv_heads
        token_bytes = 2 * spec.num_kv_heads * spec.head_dim * spec.dtype.itemsize
        self._max_gather = max(1, GATHER_BYTES.get(spec.device.type, 64 << 20) // token_bytes)

    @classmethod
    def supports(cls, spec: AttentionSpec) -> str | None:
        """See AttentionBackend: everything."""
        return None

    def plan(self, batch: ForwardBatch) -> SdpaMetadata:
        """See AttentionBackend."""
        planner = SdpaPlanner(batch, self._spec, self._max_gather)
        windows = set(self._spec.windows)
        return SdpaMetadata(
            decodes={window: list(planner.decodes(window)) for window in windows},
            chunks={window: list(planner.chunks(window)) for window in windows},
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
        assert isinstance(metadata, SdpaMetadata), f"plan of another backend: {metadata}"
        k = kv_cache.k.flatten(0, 1)  # [num_slots, num_kv_heads, head_dim]
        v = kv_cache.v.flatten(0, 1)
        decodes, chunks = metadata.decodes[window], metadata.chunks[window]
        if out is None:
            if len(decodes) == 1 and not chunks and isinstance(decodes[0].queries, slice):
                return self._decode(q, k, v, decodes[0], scale)
            if len(chunks) == 1 and not decodes:
                return self._prefill(q, k, v, chunks[0], scale)
            out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        for piece in decodes:
            out[piece.queries] = self._decode(q, k, v, piece, scale)
        for chunk in chunks:
            out[chunk.queries] = self._prefill(q, k, v, chunk, scale)
        return out

    def _decode(self, q: Tensor, k: Tensor, v: Tensor, piece: Decodes, scale: float) -> Tensor:
        shape = (piece.num_reqs, -1, self._spec.num_kv_heads, self._spec.head_dim)
        grouped = q[piece.queries].view(shape[0], shape[2], self._group_size, shape[3])
        attended = F.scaled_dot_product_attention(
            grouped,  # [num_reqs, num_kv_heads, group_size, head_dim]
            _rows(k, piece.keys).view(shape).transpose(1, 2),
            _rows(v, piece.keys).view(shape).transpose(1, 2),
            attn_mask=piece.mask,
            scale=scale,
        )
        return attended.reshape(shape[0], self._spec.num_heads, shape[3])

    def _prefill(self, q: Tensor, k: Tensor, v: Tensor, chunk: Chunk, scale: float) -> Tensor:
        # Key heads become the batch, the queries that share one its heads; keys have stride 0.
        grouped = q[chunk.queries].unflatten(1, (-1, self._group_size)).permute(1, 2, 0, 3)
        sizes = (-1, self._group_size, -1, -1)
        attended = F.scaled_dot_product_attention(
            grouped,  # [num_kv_heads, group_size, query_len, head_dim]
            _rows(k, chunk.keys).transpose(0, 1).unsqueeze(1).expand(sizes),
            _rows(v, chunk.keys).transpose(0, 1).unsqueeze(1).expand(sizes),
            attn_mask=chunk.mask,
            is_causal=chunk.mask is None,
            scale=scale,
        )
        return attended.permute(2, 0, 1, 3).flatten(1, 2)


def _rows(cache: Tensor, where: Where) -> Tensor:
    return cache[where] if isinstance(where, slice) else cache.index_select(0, where)
