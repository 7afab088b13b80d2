"""The contract between a batch, the model and whatever computes attention.

A backend does all host work of a batch once, in `plan`; `run` is then called by every layer and must
not wait for the device. Keys and values of the batch's tokens are already in the cache when `run` is
called (layers/attention.py stores them first), so a backend only reads it.

Example, one prompt of three tokens in block 5 of a pool with 16-token blocks::

    batch = ForwardBatch(
        input_ids=torch.tensor([7, 8, 9]), positions=torch.tensor([0, 1, 2]),
        slot_mapping=torch.tensor([80, 81, 82]), block_tables=torch.tensor([[5]]),
        query_lens=[3], context_lens=[3], device_context_lens=torch.tensor([3], dtype=torch.int32),
        num_decodes=0, logits_indices=torch.tensor([2]), kv_caches=pool.layers)
    batch.attn_metadata = backend.plan(batch)
    hidden_states = model.forward(batch)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from chitu_like.core.registry import Registry


class LayerKVCache(NamedTuple):
    """One layer's keys and values: each [num_blocks, block_size, num_local_kv_heads, head_dim]."""

    k: Tensor
    v: Tensor


@dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """What a backend must know of the model before the first batch.

    Attributes:
        num_heads, num_kv_heads: of this rank; num_heads is a multiple of num_kv_heads.
        head_dim: of queries, keys and values.
        windows: every sliding window that occurs over the layers, in tokens a query sees
            (itself included); None for full attention.
        block_size: tokens a KV block.
        dtype: of q, k, v and the output.
        device: where they are.
        max_reqs: the most in a batch, where room must be made before there is one.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    windows: tuple[int | None, ...]
    block_size: int
    dtype: torch.dtype
    device: torch.device
    max_reqs: int = 256


class AttentionMetadata:
    """What a backend's `plan` hands to its `run`; each backend has its own."""


class Attend(Protocol):
    """One layer's attention, whichever the batch: layers/attention.py's."""

    def __call__(self, q: Tensor, batch: ForwardBatch, out: Tensor | None = None) -> Tensor:
        """Of q [num_tokens, num_heads, head_dim]; as AttentionBackend.run."""
        ...


Seam = Callable[[Attend, Tensor], Tensor]
"""Takes the place of a layer's attention: given that and q, says where its output is going to be."""


@dataclass(kw_only=True)
class ForwardBatch:
    """One batch as tensors on this rank, passed from the runner through the model to every layer.

    Requests stand one after the other, decodes (one query token each) first.

    Attributes:
        input_ids: [num_tokens] int64.
        positions: [num_tokens] int64, position in its own request.
        slot_mapping: [num_tokens] int64, where its key and value go:
            block id * block_size + offset.
        block_tables: [num_reqs, max_blocks] int32, block ids in order; padded with 0.
        query_lens: [num_reqs] query tokens of each request, on the host.
        context_lens: [num_reqs] tokens each has in the cache once this batch's are stored, on the
            host: a query token at position p sees positions 0 to p.
        device_context_lens: [num_reqs] int32, the same numbers where the kernels are.
        num_decodes: leading requests with one query token.
        decode_order: [num_decodes] int32, those from the longest context to the shortest, for kernels
            that take them one after the other: what takes longest then does not begin last
            (Graham 1969, "Bounds on multiprocessing timing anomalies"). None: as they come.
        logits_indices: [num_logits] int64, rows of the hidden states whose logits are wanted.
        kv_caches: by GLOBAL layer index; absent on ranks that do not hold the layer.
        attn_metadata: set by the runner from `AttentionBackend.plan`.
        seam: what attention layers call instead of attending, while a step is recorded that attention
            is no part of (worker/mixed_steps.py); such a batch has tokens, but no requests.
    """

    input_ids: Tensor
    positions: Tensor
    slot_mapping: Tensor
    block_tables: Tensor
    query_lens: list[int]
    context_lens: list[int]
    device_context_lens: Tensor
    num_decodes: int
    logits_indices: Tensor
    kv_caches: dict[int, LayerKVCache]
    decode_order: Tensor | None = None
    attn_metadata: AttentionMetadata | None = None
    seam: Seam | None = None

    def requests(self, which: slice) -> ForwardBatch:
        """The leading decodes alone, or all behind them, in the same memory.

        What backends do not read (logits_indices) stays whole.

        Args:
            which: slice(num_decodes), or slice(num_decodes, None).
        """
        first = sum(self.query_lens[: which.start or 0])
        tokens = slice(first, first + sum(self.query_lens[which]))
        return replace(
            self,
            input_ids=self.input_ids[tokens],
            positions=self.positions[tokens],
            slot_mapping=self.slot_mapping[tokens],
            block_tables=self.block_tables[which],
            query_lens=self.query_lens[which],
            context_lens=self.context_lens[which],
            device_context_lens=self.device_context_lens[which],
            num_decodes=0 if which.start else self.num_decodes,
            decode_order=None if which.start else self.decode_order,
        )


class AttentionBackend(Protocol):
    """Attention of one kind on one device."""

    supports_cuda_graph: ClassVar[bool]

    def plan(self, batch: ForwardBatch) -> AttentionMetadata:
        """All host work for a batch, once. Valid until the next plan."""
        ...

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
        """Causal attention of each query over its own request's cached keys and values.

        Args:
            q: [num_tokens, num_heads, head_dim], not modified.
            kv_cache: this layer's, the batch's own keys and values already stored.
            metadata: from `plan` of this batch.
            scale: multiplies q.k before the softmax.
            window: tokens a query sees, itself included; None: all.
            out: contiguous, of q's shape, written to and returned; None: the backend makes one.

        Returns: [num_tokens, num_heads, head_dim].
        """
        ...


class NamedBackend(AttentionBackend, Protocol):
    """One that users may ask for by name.

    Constructed as `Backend(spec)`; a missing third-party package is an UnsupportedError that names
    the extra to install.
    """

    def __init__(self, spec: AttentionSpec) -> None: ...

    @classmethod
    def supports(cls, spec: AttentionSpec) -> str | None:
        """None where this backend can serve `spec`, else the reason why not, in a few words."""
        ...


@runtime_checkable
class GraphBackend(AttentionBackend, Protocol):
    """A backend whose decodes can be captured in a CUDA graph and replayed with other values.

    A captured batch is of decodes alone. Its tensors (block_tables, device_context_lens ...) are the
    graph's own: they keep their addresses and shapes, and get new values at the head of each replay.
    Rows that pad the batch have a context of one token, in a block that nobody reads. So a step is::

        backend.replan(metadata, batch)      # the host's part, before the replay
        ... write the batch's tensors ...    # from here on captured
        backend.prepare(metadata)
        backend.run(...)                     # in every layer
    """

    def plan_capture(self, batch: ForwardBatch) -> AttentionMetadata:
        """Plan a batch that is about to be captured; `run` is then called with what this returns.

        Everything that captured kernels read is allocated here and lives as long as the metadata.
        """
        ...

    def replan(self, metadata: AttentionMetadata, batch: ForwardBatch) -> None:
        """Host work before a replay, ordered before it on the current stream; waits for no kernel.

        Args:
            metadata: of the capture, modified.
            batch: as captured, with the host values (context_lens) of this replay; its tensors still
                hold those of an earlier one.
        """
        ...

    def prepare(self, metadata: AttentionMetadata) -> None:
        """Device work from the batch's tensors that all layers share; captured.

        Args:
            metadata: of the capture.
        """
        ...


class PlannedByTensors:
    """The part of a GraphBackend whose plan of decodes is nothing but the batch's own tensors."""

    def replan(self, metadata: AttentionMetadata, batch: ForwardBatch) -> None:
        """See GraphBackend: nothing is left to do."""

    def prepare(self, metadata: AttentionMetadata) -> None:
        """See GraphBackend: nothing is left to do."""


attention_backends: Registry[type[NamedBackend]] = Registry(
    "attention backend", "chitu_like.attention", "infer.attn_type"
)
