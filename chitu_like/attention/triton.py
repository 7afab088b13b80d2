"""The `triton` backend: our own kernels over the paged cache, on CUDA devices.

Decodes go through ops/triton/paged_decode.py, chunks through ops/triton/paged_prefill.py; a batch of
both is two calls. Not measured on a GPU yet, so "auto" does not take it.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from chitu_like.attention.base import (
    AttentionMetadata,
    AttentionSpec,
    ForwardBatch,
    LayerKVCache,
    attention_backends,
)
from chitu_like.core.errors import UnsupportedError
from chitu_like.ops.attention_tiles import MAX_HEAD_DIM, Splits, Tiling, cut_tiles, tiling_for
from chitu_like.ops.upload import upload

MAX_SPLITS = 32
WAVES = 4
"""Decode programs wanted for each multiprocessor: more would only split what is full already. A guess."""


@dataclass(frozen=True, kw_only=True)
class TritonMetadata(AttentionMetadata):
    """A batch on the device.

    For a CUDA graph of decodes: shapes and `splits.count` follow from num_decodes alone. Write new
    values into context_lens and block_tables, 0 context for padding, and replay.

    Attributes:
        num_decodes: leading requests with one token.
        block_tables: [num_reqs, max_blocks] int32.
        context_lens: [num_decodes] int32.
        splits: room for the decodes' partial results.
        tiles: [num_tiles, 5] int32, of the other requests; see `cut_tiles`.
    """

    num_decodes: int
    block_tables: Tensor
    context_lens: Tensor
    splits: Splits
    tiles: Tensor


@attention_backends.register("triton")
class TritonBackend:
    """Paged split-KV decode and varlen prefill in Triton.

    Args:
        spec: the model's attention.
        tiling: sizes of the kernels' tiles; None: what TILINGS says.
        num_programs: decode programs wanted at once; None: what fills the device.

    Raises: UnsupportedError if Triton is not installed.
    """

    supports_cuda_graph: ClassVar[bool] = True

    def __init__(
        self, spec: AttentionSpec, *, tiling: Tiling | None = None, num_programs: int | None = None
    ) -> None:
        if importlib.util.find_spec("triton") is None:
            raise UnsupportedError(
                "infer.attn_type=triton needs Triton, which comes with torch for CUDA on Linux: "
                "pip install triton, or use auto"
            )
        from chitu_like.ops.triton.paged_decode import paged_decode
        from chitu_like.ops.triton.paged_prefill import paged_prefill

        self._decode, self._prefill = paged_decode, paged_prefill
        self._spec = spec
        self._tiling = tiling or tiling_for(spec.head_dim, spec.dtype)
        if num_programs is None:
            device = torch.cuda.get_device_properties(spec.device)
            num_programs = WAVES * device.multi_processor_count
        self._num_programs = num_programs

    @classmethod
    def supports(cls, spec: AttentionSpec) -> str | None:
        """See AttentionBackend: CUDA devices, heads of at most MAX_HEAD_DIM."""
        if spec.device.type != "cuda":
            return "its kernels need a CUDA device"
        if spec.head_dim > MAX_HEAD_DIM:
            return f"head_dim {spec.head_dim} is more than {MAX_HEAD_DIM}"
        return None

    def plan(self, batch: ForwardBatch) -> TritonMetadata:
        """See AttentionBackend: one upload."""
        spec, num_decodes = self._spec, batch.num_decodes
        context_lens = np.array(batch.context_lens, np.int32)
        tiles = cut_tiles(
            np.array(batch.query_lens, np.int32),
            context_lens,
            num_decodes,
            group=spec.num_heads // spec.num_kv_heads,
            rows=self._tiling.prefill.rows,
        )
        packed = upload(np.concatenate((tiles.ravel(), context_lens[:num_decodes])), spec.device)
        return TritonMetadata(
            num_decodes=num_decodes,
            block_tables=batch.block_tables,
            context_lens=packed[tiles.size :],
            splits=Splits.allocate(
                self._num_splits(num_decodes),
                num_reqs=num_decodes,
                num_heads=spec.num_heads,
                head_dim=spec.head_dim,
                device=spec.device,
            ),
            tiles=packed[: tiles.size].view(tiles.shape),
        )

    def run(
        self,
        q: Tensor,
        kv_cache: LayerKVCache,
        metadata: AttentionMetadata,
        *,
        scale: float,
        window: int | None,
    ) -> Tensor:
        """See AttentionBackend."""
        assert isinstance(metadata, TritonMetadata), f"plan of another backend: {metadata}"
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        num_decodes = metadata.num_decodes
        if num_decodes:
            self._decode(
                q[:num_decodes],
                *kv_cache,
                metadata.block_tables[:num_decodes],
                metadata.context_lens,
                out[:num_decodes],
                metadata.splits,
                scale=scale,
                window=window,
                tile=self._tiling.decode,
            )
        if len(metadata.tiles):
            self._prefill(
                q,
                *kv_cache,
                metadata.block_tables,
                metadata.tiles,
                out,
                scale=scale,
                window=window,
                tile=self._tiling.prefill,
            )
        return out

    def _num_splits(self, num_reqs: int) -> int:
        """A power of two that gives the programs wanted, from the number of requests alone."""
        wanted = -(-self._num_programs // max(1, num_reqs * self._spec.num_kv_heads))
        return min(MAX_SPLITS, 1 << (wanted - 1).bit_length())
