"""The `flash_attn` backend: FlashAttention 3 where it is installed, else 2, over the paged cache.

Dao 2023, arXiv:2307.08691; Shah et al. 2024, arXiv:2407.08608. The two packages name the same things
differently: version 3 (`flash_attn_interface`, built from its repository for Hopper) takes decodes and
chunks in one function and pages of any size, version 2 (`flash_attn`) has a function for each and wants
blocks of a multiple of 256 tokens.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

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
from chitu_like.attention.package import import_package
from chitu_like.ops.upload import upload

VERSION_2, VERSION_3 = "flash_attn", "flash_attn_interface"
PAGE_2 = 256
"""Version 2 reads pages of a multiple of these tokens."""


@dataclass(frozen=True, kw_only=True)
class Requests:
    """Some requests of a batch.

    Attributes:
        block_tables: [num_reqs, max_blocks] int32.
        context_lens: [num_reqs] int32.
    """

    block_tables: Tensor
    context_lens: Tensor


@dataclass(frozen=True, kw_only=True)
class Chunks(Requests):
    """Requests with any number of tokens.

    Attributes:
        cu_seqlens_q: [num_reqs + 1] int32, where each one's tokens start.
        cu_seqlens_k: [num_reqs + 1] int32, the same of their contexts.
        max_seqlen_q: the most tokens of one.
        max_seqlen_k: the longest context.
    """

    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    max_seqlen_q: int
    max_seqlen_k: int


@dataclass(frozen=True, kw_only=True)
class FlashAttnMetadata(AttentionMetadata):
    """Both parts of a batch; None for one that it does not have."""

    num_decodes: int
    decodes: Requests | None
    chunks: Chunks | None


class FlashAttention(Protocol):
    """A version of the package. `window` is its (left, right), both -1 for all that is causal."""

    def decode(
        self, q: Tensor, cache: LayerKVCache, at: Requests, scale: float, window: tuple[int, int]
    ) -> Tensor:
        """One token a request: [num_reqs, num_heads, head_dim] in and out."""
        ...

    def prefill(
        self, q: Tensor, cache: LayerKVCache, at: Chunks, scale: float, window: tuple[int, int]
    ) -> Tensor:
        """Chunks, one behind the other: [num_tokens, num_heads, head_dim] in and out."""
        ...


class _CachedDecode:
    """Decodes, which the versions take alike but for a word.

    Args:
        attend: the package's flash_attn_with_kvcache.
        tables: its name for block tables.
    """

    def __init__(self, attend: Callable[..., Tensor], tables: str) -> None:
        self._with_cache, self._tables = attend, tables

    def decode(
        self, q: Tensor, cache: LayerKVCache, at: Requests, scale: float, window: tuple[int, int]
    ) -> Tensor:
        """See FlashAttention."""
        out = self._with_cache(
            q.unsqueeze(1),
            cache.k,
            cache.v,
            cache_seqlens=at.context_lens,
            softmax_scale=scale,
            causal=True,
            window_size=window,
            **{self._tables: at.block_tables},
        )
        return out.squeeze(1)


class FlashAttention2(_CachedDecode):
    """`flash_attn`, read at version 2.8.3."""

    def __init__(self) -> None:
        package = import_package(VERSION_2, extra="flash_attn")
        super().__init__(package.flash_attn_with_kvcache, "block_table")
        self._varlen = package.flash_attn_varlen_func

    def prefill(
        self, q: Tensor, cache: LayerKVCache, at: Chunks, scale: float, window: tuple[int, int]
    ) -> Tensor:
        """See FlashAttention."""
        out: Tensor = self._varlen(
            q,
            cache.k,
            cache.v,
            at.cu_seqlens_q,
            at.cu_seqlens_k,
            at.max_seqlen_q,
            at.max_seqlen_k,
            softmax_scale=scale,
            causal=True,
            window_size=window,
            block_table=at.block_tables,
        )
        return out


class FlashAttention3(_CachedDecode):
    """`flash_attn_interface`, read at version 3.0 of January 2026."""

    def __init__(self) -> None:
        package = import_package(VERSION_3, extra="flash_attn")
        super().__init__(package.flash_attn_with_kvcache, "page_table")

    def prefill(
        self, q: Tensor, cache: LayerKVCache, at: Chunks, scale: float, window: tuple[int, int]
    ) -> Tensor:
        """See FlashAttention."""
        return self._with_cache(
            q,
            cache.k,
            cache.v,
            cache_seqlens=at.context_lens,
            page_table=at.block_tables,
            cu_seqlens_q=at.cu_seqlens_q,
            max_seqlen_q=at.max_seqlen_q,
            softmax_scale=scale,
            causal=True,
            window_size=window,
        )


@attention_backends.register("flash_attn")
class FlashAttnBackend(PlannedByTensors):
    """Paged decode and prefill by FlashAttention.

    Args:
        spec: the model's attention.
        version: of FlashAttention; None: 3 where it is installed.

    Raises: UnsupportedError if it is not installed.
    """

    supports_cuda_graph: ClassVar[bool] = True

    def __init__(self, spec: AttentionSpec, *, version: Literal[2, 3] | None = None) -> None:
        self._device = spec.device
        if version is None:
            version = 3 if _has_version_3() else 2
        self._flash: FlashAttention = FlashAttention3() if version == 3 else FlashAttention2()

    @classmethod
    def supports(cls, spec: AttentionSpec) -> str | None:
        """See AttentionBackend: 16-bit types on CUDA devices; version 2 asks for large blocks."""
        if spec.device.type != "cuda":
            return "its kernels need a CUDA device"
        if spec.dtype.itemsize != 2:
            return f"its kernels compute bfloat16 and float16, not {spec.dtype}"
        if spec.head_dim % 8 or spec.head_dim > 256:
            return f"head_dim {spec.head_dim} is no multiple of 8 up to 256"
        if spec.block_size % PAGE_2 and not _has_version_3():
            return (
                f"FlashAttention 2 reads blocks of a multiple of {PAGE_2} tokens, not of "
                f"{spec.block_size} (infer.block_size={PAGE_2})"
            )
        return None

    def plan(self, batch: ForwardBatch) -> FlashAttnMetadata:
        """See AttentionBackend: one upload where there are chunks, none of decodes."""
        n = batch.num_decodes
        decodes = Requests(
            block_tables=batch.block_tables[:n], context_lens=batch.device_context_lens[:n]
        )
        return FlashAttnMetadata(
            num_decodes=n,
            decodes=decodes if n else None,
            chunks=self._chunks(batch) if n < len(batch.query_lens) else None,
        )

    def plan_capture(self, batch: ForwardBatch) -> FlashAttnMetadata:
        """See GraphBackend: a plan of decodes reads the batch's own tensors, so it is one already."""
        assert batch.num_decodes == len(batch.query_lens), "only decodes are captured"
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
        assert isinstance(metadata, FlashAttnMetadata), f"plan of another backend: {metadata}"
        n, sides = metadata.num_decodes, (-1, -1) if window is None else (window - 1, 0)
        parts = []
        if metadata.decodes is not None:
            parts.append(self._flash.decode(q[:n], kv_cache, metadata.decodes, scale, sides))
        if metadata.chunks is not None:
            parts.append(self._flash.prefill(q[n:], kv_cache, metadata.chunks, scale, sides))
        # The package takes no place to write to.
        return parts[0] if out is None and len(parts) == 1 else torch.cat(parts, out=out)

    def _chunks(self, batch: ForwardBatch) -> Chunks:
        n = batch.num_decodes
        lens = np.array((batch.query_lens[n:], batch.context_lens[n:]), np.int32)
        ends = np.zeros((2, lens.shape[1] + 1), np.int32)
        np.cumsum(lens, axis=1, out=ends[:, 1:])
        cu_seqlens = upload(ends, self._device)
        return Chunks(
            block_tables=batch.block_tables[n:],
            context_lens=batch.device_context_lens[n:],
            cu_seqlens_q=cu_seqlens[0],
            cu_seqlens_k=cu_seqlens[1],
            max_seqlen_q=int(lens[0].max()),
            max_seqlen_k=int(lens[1].max()),
        )


def _has_version_3() -> bool:
    return importlib.util.find_spec(VERSION_3) is not None
