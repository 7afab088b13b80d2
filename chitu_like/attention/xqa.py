"""The `xqa` backend: FlashInfer's XQA kernel, for decodes alone ("flashinfer+xqa").

It reads block tables and context lengths as they lie on the device, so a step has no plan at all, and
splits a context by the shape of the batch alone: on an H200 the fastest for 8 to 32 requests of 1024
tokens, and the slowest for 256 (benchmarks/RESULTS.md).
"""

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
    PlannedByTensors,
    attention_backends,
)
from chitu_like.attention.package import import_package

BLOCK_SIZES = (16, 32, 64, 128)
MAX_GROUP = 32
"""Rows of its tile; larger groups would be untested ground."""

CAPABILITIES = (9, 10, 12)  # Hopper and Blackwell
WORKSPACE_BYTES = (8 + 32) << 20
"""8 MiB of semaphores, and partial results: a tile for each multiprocessor, 64 KiB at most."""


@dataclass(frozen=True, kw_only=True)
class XqaMetadata(AttentionMetadata):
    """The batch's own tensors."""

    block_tables: Tensor
    context_lens: Tensor


@attention_backends.register("xqa")
class XqaBackend(PlannedByTensors):
    """Paged decode by XQA.

    Args:
        spec: the model's attention.

    Raises: UnsupportedError if FlashInfer is not installed.
    """

    supports_cuda_graph: ClassVar[bool] = True

    def __init__(self, spec: AttentionSpec) -> None:
        package = import_package("flashinfer.decode", extra="flashinfer")
        self._attend = package.xqa_batch_decode_with_kv_cache
        self._block_size = spec.block_size
        # Its semaphores count down to zero, where the next call finds them.
        self._workspace = torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=spec.device)

    @classmethod
    def supports(cls, spec: AttentionSpec) -> str | None:
        """See AttentionBackend: Hopper and Blackwell, 16-bit types, blocks of a power of two."""
        if spec.device.type != "cuda":
            return "its kernels need a CUDA device"
        if spec.dtype.itemsize != 2:
            return f"its kernels compute bfloat16 and float16, not {spec.dtype}"
        if spec.head_dim % 16 or spec.head_dim > 256:
            return f"head_dim {spec.head_dim} is no multiple of 16 up to 256"
        if spec.num_heads // spec.num_kv_heads > MAX_GROUP:
            return f"more than {MAX_GROUP} query heads share a key head"
        if spec.block_size not in BLOCK_SIZES:
            sizes = ", ".join(map(str, BLOCK_SIZES))
            return f"infer.block_size={spec.block_size} is none of {sizes}"
        if torch.cuda.is_available() and _generation(spec.device) not in CAPABILITIES:
            return "its kernels need a Hopper or Blackwell GPU"
        return None

    def plan(self, batch: ForwardBatch) -> XqaMetadata:
        """See AttentionBackend; of decodes alone."""
        assert batch.num_decodes == len(batch.query_lens), "xqa attends decodes alone"
        return XqaMetadata(
            block_tables=batch.block_tables.contiguous(), context_lens=batch.device_context_lens
        )

    def plan_capture(self, batch: ForwardBatch) -> XqaMetadata:
        """See GraphBackend."""
        assert batch.block_tables.is_contiguous(), "a copy would keep the first replay's tables"
        return self.plan(batch)

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
        assert isinstance(metadata, XqaMetadata), f"plan of another backend: {metadata}"
        tables = metadata.block_tables
        if out is None:
            out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        self._attend(
            q.contiguous(),  # it takes no strides
            (kv_cache.k, kv_cache.v),
            self._workspace,
            tables,
            metadata.context_lens,
            tables.shape[1] * self._block_size,
            bmm1_scale=scale,
            bmm2_scale=1.0,
            window_left=-1 if window is None else window - 1,
            out=out,
            kv_layout="NHD",
        )
        return out


def _generation(device: torch.device) -> int:
    return torch.cuda.get_device_capability(device)[0]
