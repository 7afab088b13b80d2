"""The `triton` backend: our own kernels over the paged cache, on CUDA devices.

Decodes go through ops/triton/paged_decode.py, chunks through ops/triton/paged_prefill.py; a batch of
both is two calls. A step of decodes uploads nothing: the kernels read block tables and context lengths
where the batch has them, and how their grid is cut follows from the number of requests alone.
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
    PlannedByTensors,
    attention_backends,
)
from chitu_like.core.errors import UnsupportedError
from chitu_like.ops.attention_tiles import (
    MAX_HEAD_DIM,
    SplitRoom,
    Splits,
    Tiling,
    cut_tiles,
    decode_tiles,
    tiling_for,
)
from chitu_like.ops.upload import upload

MAX_SPLITS = 32
WAVES = 2
"""Decode programs wanted for each multiprocessor: more would only split what is full already."""

DETERMINISTIC_SPLIT = 2048
"""Tokens of a split whose bits may not depend on the batch. A guess: 1024 would cost twice the room
for partial results, 4096 would leave a lone request of 16k tokens on 4 programs a head."""


@dataclass(frozen=True, kw_only=True)
class TritonMetadata(AttentionMetadata):
    """A batch on the device.

    Attributes:
        num_decodes: leading requests with one token.
        block_tables: [num_reqs, max_blocks] int32, the batch's own.
        context_lens: [num_reqs] int32, the batch's own.
        decode_order: of the decodes, the batch's own.
        splits: room for the decodes' partial results.
        tiles: [num_tiles, 5] int32, of the other requests; see `cut_tiles`.
    """

    num_decodes: int
    block_tables: Tensor
    context_lens: Tensor
    decode_order: Tensor | None
    splits: Splits
    tiles: Tensor


@attention_backends.register("triton")
class TritonBackend(PlannedByTensors):
    """Paged split-KV decode and varlen prefill in Triton.

    A chunk's result never depends on the batch, nor on how the prompt was cut (`cut_tiles`).

    Args:
        spec: the model's attention.
        tiling: sizes of the kernels' tiles; None: what TILINGS says, cut to fit the device.
        num_programs: decode programs wanted at once; None: what fills the device.
        split_tokens: tokens of a decode's split, so that its result does not depend on the batch
            either, to the last bit; a multiple of the decode tile's keys, DETERMINISTIC_SPLIT is
            one. 0: equal shares, as many as fill the device.
        decodes_as_chunks: by the kernel of chunks, so that a token gets the same bits whether it is
            decoded or, after a preemption or from another prompt, computed in a chunk.
        pdl: decode kernels start while the kernel before ends; see paged_decode.

    Raises: UnsupportedError if Triton is not installed.
    """

    supports_cuda_graph: ClassVar[bool] = True

    def __init__(
        self,
        spec: AttentionSpec,
        *,
        tiling: Tiling | None = None,
        num_programs: int | None = None,
        split_tokens: int = 0,
        decodes_as_chunks: bool = False,
        pdl: bool = False,
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
        if tiling is None or num_programs is None:
            device = torch.cuda.get_device_properties(spec.device)
            # The system keeps 1 KiB of what a program has.
            shared_bytes = device.shared_memory_per_multiprocessor - 1024
            tiling = tiling or tiling_for(spec.head_dim, spec.dtype, shared_bytes)
            num_programs = num_programs or WAVES * device.multi_processor_count
        self._tiling, self._num_programs = tiling, num_programs
        self._split_tokens = split_tokens
        self._decodes_as_chunks = decodes_as_chunks
        self._group = spec.num_heads // spec.num_kv_heads
        self._pdl = pdl
        self._captured = SplitRoom(spec.device)
        self._no_tiles = torch.empty(0, 5, dtype=torch.int32, device=spec.device)

    @classmethod
    def supports(cls, spec: AttentionSpec) -> str | None:
        """See AttentionBackend: CUDA devices, heads of at most MAX_HEAD_DIM."""
        if spec.device.type != "cuda":
            return "its kernels need a CUDA device"
        if spec.head_dim > MAX_HEAD_DIM:
            return f"head_dim {spec.head_dim} is more than {MAX_HEAD_DIM}"
        return None

    def plan(self, batch: ForwardBatch) -> TritonMetadata:
        """See AttentionBackend: one upload where there are chunks, none of decodes."""
        return self._plan(batch, None)

    def _plan(self, batch: ForwardBatch, room: SplitRoom | None) -> TritonMetadata:
        num_reqs, max_blocks = batch.block_tables.shape
        num_decodes = 0 if self._decodes_as_chunks else batch.num_decodes
        if num_decodes == num_reqs:
            tiles = self._no_tiles
        elif batch.num_decodes == num_reqs:
            tiles = self._decode_tiles(batch.device_context_lens)
        else:
            tiles = self._tiles(batch, num_decodes)
        return TritonMetadata(
            num_decodes=num_decodes,
            block_tables=batch.block_tables,
            context_lens=batch.device_context_lens,
            decode_order=batch.decode_order,
            splits=self._splits(num_decodes, max_blocks, room),
            tiles=tiles,
        )

    def plan_capture(self, batch: ForwardBatch) -> TritonMetadata:
        """See GraphBackend: a plan of decodes reads the batch's own tensors, so it is one already."""
        assert batch.num_decodes == len(batch.query_lens), "only decodes are captured"
        return self._plan(batch, self._captured)

    def prepare(self, metadata: AttentionMetadata) -> None:
        """See GraphBackend: the tiles of decodes as chunks, else nothing."""
        assert isinstance(metadata, TritonMetadata), f"plan of another backend: {metadata}"
        if len(metadata.tiles):
            metadata.tiles.copy_(self._decode_tiles(metadata.context_lens))

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
        assert isinstance(metadata, TritonMetadata), f"plan of another backend: {metadata}"
        if out is None:
            out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        num_decodes = metadata.num_decodes
        if num_decodes:
            self._decode(
                q[:num_decodes],
                *kv_cache,
                metadata.block_tables[:num_decodes],
                metadata.context_lens[:num_decodes],
                out[:num_decodes],
                metadata.splits,
                order=metadata.decode_order,
                scale=scale,
                window=window,
                tile=self._tiling.decode,
                pdl=self._pdl,
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

    def _tiles(self, batch: ForwardBatch, num_leading: int) -> Tensor:
        tiles = cut_tiles(
            np.array(batch.query_lens, np.int32),
            np.array(batch.context_lens, np.int32),
            num_leading,
            group=self._group,
            rows=self._tiling.prefill.rows,
        )
        return upload(tiles, self._spec.device)

    def _decode_tiles(self, context_lens: Tensor) -> Tensor:
        return decode_tiles(context_lens, group=self._group, rows=self._tiling.prefill.rows)

    def _splits(self, num_decodes: int, max_blocks: int, room: SplitRoom | None) -> Splits:
        """Room for as many splits as the shape of a batch asks for, whatever its lengths."""
        spec = self._spec
        if self._split_tokens:
            count = -(-max_blocks * spec.block_size // self._split_tokens)
        else:
            count = num_splits(num_decodes, spec.num_kv_heads, self._num_programs)
        return Splits.allocate(
            count,
            tokens=self._split_tokens,
            num_reqs=num_decodes,
            num_heads=spec.num_heads,
            head_dim=spec.head_dim,
            device=spec.device,
            room=room,
        )


def num_splits(num_reqs: int, num_kv_heads: int, num_programs: int) -> int:
    """Splits of each request for `num_programs` in all: a power of two, MAX_SPLITS at most."""
    wanted = -(-num_programs // max(1, num_reqs * num_kv_heads))
    return min(MAX_SPLITS, 1 << (wanted - 1).bit_length())
