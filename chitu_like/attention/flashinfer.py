"""The `flashinfer` backend: FlashInfer's kernels over the paged cache (Ye et al. 2025, arXiv:2501.01005).

Decodes are planned once a step and window. Captured ones keep their tables and the division of work in
buffers of the backend, which all captured steps share, since one runs at a time; the host's part of a
replay is one plan, and its copy. Kernels are compiled for a shape when it is first used.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from chitu_like.attention.base import (
    AttentionMetadata,
    AttentionSpec,
    ForwardBatch,
    LayerKVCache,
    attention_backends,
)
from chitu_like.attention.flashinfer_plans import (
    HostTables,
    PagedWrapper,
    PinnedMemory,
    Planner,
    uses_tensor_cores,
    workspace_bytes,
)
from chitu_like.attention.package import import_package
from chitu_like.ops.flat_tables import FlatTables, flatten_tables_op

HEAD_DIMS = (64, 128, 256)
LAYOUT = "NHD"  # [num_blocks, block_size, num_kv_heads, head_dim]

Wrappers = dict[int | None, PagedWrapper]
"""By window: a plan holds for one."""


@dataclass(frozen=True, kw_only=True)
class FlashInferMetadata(AttentionMetadata):
    """A batch, planned.

    Attributes:
        num_decodes: leading requests with one token.
        has_chunks: there are others.
        decode: of the decodes.
        tables: of captured decodes: the wrappers read them.
        batch: that was captured; None where nothing was.
    """

    num_decodes: int
    has_chunks: bool
    decode: Wrappers
    tables: FlatTables
    batch: ForwardBatch | None = None


@attention_backends.register("flashinfer")
class FlashInferBackend:
    """Paged decode and prefill by FlashInfer.

    Args:
        spec: the model's attention.
        use_tensor_cores: of decodes; None: by the number of query heads a key head.
        prefill_kernel: auto: FlashAttention 3 on Hopper, else 2.
        num_sms: multiprocessors of the device; None: as it says.

    Raises: UnsupportedError if FlashInfer is not installed.
    """

    supports_cuda_graph: ClassVar[bool] = True

    def __init__(
        self,
        spec: AttentionSpec,
        *,
        use_tensor_cores: bool | None = None,
        prefill_kernel: Literal["auto", "fa2", "fa3"] = "auto",
        num_sms: int | None = None,
    ) -> None:
        self._package = import_package("flashinfer", extra="flashinfer")
        self._spec, self._planner = spec, Planner(spec)
        # Apart: a step may plan its chunks and then its captured decodes, and must not wait between.
        self._pinned, self._captured_pinned = (PinnedMemory(spec.device) for _ in range(2))
        self._flatten = flatten_tables_op.resolve(spec.device, spec.dtype)
        self._use_tensor_cores = (
            uses_tensor_cores(spec) if use_tensor_cores is None else use_tensor_cores
        )
        if num_sms is None:
            num_sms = torch.cuda.get_device_properties(spec.device).multi_processor_count
        float_bytes, self._int_bytes = workspace_bytes(spec, num_sms)
        self._workspace = torch.zeros(float_bytes, dtype=torch.uint8, device=spec.device)
        self._captured_tables: FlatTables | None = None
        windows = dict.fromkeys(spec.windows)
        self._captured_work = {window: self._bytes(self._int_bytes) for window in windows}
        self._decode: Wrappers = {
            window: self._package.BatchDecodeWithPagedKVCacheWrapper(
                self._workspace, LAYOUT, use_tensor_cores=self._use_tensor_cores
            )
            for window in windows
        }
        self._prefill: Wrappers = {
            window: self._package.BatchPrefillWithPagedKVCacheWrapper(
                self._workspace, LAYOUT, backend=prefill_kernel
            )
            for window in windows
        }

    @classmethod
    def supports(cls, spec: AttentionSpec) -> str | None:
        """See AttentionBackend: 16-bit types on CUDA devices, the head sizes it has kernels for."""
        if spec.device.type != "cuda":
            return "its kernels need a CUDA device"
        if spec.dtype.itemsize != 2:
            return f"its kernels compute bfloat16 and float16, not {spec.dtype}"
        if spec.head_dim not in HEAD_DIMS:
            return f"head_dim {spec.head_dim} is none of {', '.join(map(str, HEAD_DIMS))}"
        return None

    def plan(self, batch: ForwardBatch) -> FlashInferMetadata:
        """See AttentionBackend."""
        num_reqs, num_decodes = len(batch.query_lens), batch.num_decodes
        host = HostTables.of(batch.context_lens, self._spec.block_size)
        tables = FlatTables.empty(num_reqs, int(host.indptr[-1]), self._spec.device)
        self._flatten(batch.block_tables, batch.device_context_lens, self._spec.block_size, tables)
        self._pinned.await_copies()
        if num_decodes:
            of_decodes = HostTables(
                indptr=host.indptr[: num_decodes + 1],
                last_block_lens=host.last_block_lens[:num_decodes],
            )
            for window, wrapper in self._decode.items():
                self._planner.plan_decode(wrapper, of_decodes, tables.indices, window)
        if num_decodes < num_reqs:
            for window, wrapper in self._prefill.items():
                self._planner.plan_prefill(wrapper, host, tables.indices, batch, window)
        self._pinned.note_copies()
        return FlashInferMetadata(
            num_decodes=num_decodes,
            has_chunks=num_decodes < num_reqs,
            decode=self._decode,
            tables=tables,
        )

    def plan_capture(self, batch: ForwardBatch) -> FlashInferMetadata:
        """See GraphBackend."""
        assert batch.num_decodes == len(batch.query_lens), "only decodes are captured"
        tables = self._tables_for_capture(*batch.block_tables.shape)
        host = HostTables.of(batch.context_lens, self._spec.block_size)
        self._captured_pinned.await_copies()
        wrappers: Wrappers = {}
        for window, work in self._captured_work.items():
            wrappers[window] = wrapper = self._package.BatchDecodeWithPagedKVCacheWrapper(
                self._workspace,
                LAYOUT,
                use_cuda_graph=True,
                use_tensor_cores=self._use_tensor_cores,
                paged_kv_indptr_buffer=tables.indptr,
                paged_kv_indices_buffer=tables.indices,
                paged_kv_last_page_len_buffer=tables.last_block_lens,
            )
            # Of its own it has 8 MiB, of which dozens of captured steps would make a pool of blocks.
            wrapper.reset_workspace_buffer(self._workspace, work)
            self._planner.plan_decode(wrapper, host, tables.indices[:0], window)
        self._captured_pinned.note_copies()
        return FlashInferMetadata(
            num_decodes=batch.num_decodes,
            has_chunks=False,
            decode=wrappers,
            tables=tables,
            batch=replace(batch, kv_caches={}),  # another holds this plan, and the cache
        )

    def replan(self, metadata: AttentionMetadata, batch: ForwardBatch) -> None:
        """See GraphBackend."""
        assert isinstance(metadata, FlashInferMetadata), f"plan of another backend: {metadata}"
        host = HostTables.of(batch.context_lens, self._spec.block_size)
        none = metadata.tables.indices[:0]
        self._captured_pinned.await_copies()
        for window, wrapper in metadata.decode.items():
            self._planner.replan_decode(self._package.fast_decode_plan, wrapper, host, none, window)
        self._captured_pinned.note_copies()

    def prepare(self, metadata: AttentionMetadata) -> None:
        """See GraphBackend: the tables of the step, as the wrappers take them."""
        assert isinstance(metadata, FlashInferMetadata), f"plan of another backend: {metadata}"
        batch = metadata.batch
        assert batch is not None, "prepared without a capture"
        self._flatten(
            batch.block_tables, batch.device_context_lens, self._spec.block_size, metadata.tables
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
        assert isinstance(metadata, FlashInferMetadata), f"plan of another backend: {metadata}"
        if out is None:
            out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        n, cache = metadata.num_decodes, (kv_cache.k, kv_cache.v)
        if n:
            metadata.decode[window].run(q[:n], cache, q_scale=scale, out=out[:n])
        if metadata.has_chunks:
            self._prefill[window].run(q[n:], cache, q_scale=scale, out=out[n:])
        return out

    def _tables_for_capture(self, num_reqs: int, max_blocks: int) -> FlatTables:
        """Those that captured steps share; the first is the largest, so they grow once."""
        room = self._captured_tables
        if room is None or len(room.indices) < num_reqs * max_blocks:
            room = FlatTables.empty(num_reqs, num_reqs * max_blocks, self._spec.device)
            self._captured_tables = room
        return room.head(num_reqs)

    def _bytes(self, count: int) -> Tensor:
        return torch.empty(count, dtype=torch.uint8, device=self._spec.device)
