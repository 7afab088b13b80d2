"""FlashInfer's wrappers, planned from what the host knows, so that no plan waits for the device.

A plan of FlashInfer divides a batch's work among the multiprocessors on the host, writes the result to
pinned memory of the wrapper and queues its copy to the device. What the host knows is how many blocks
each request has; which ones stays on the device (ops/flat_tables.py).

https://docs.flashinfer.ai/api/attention.html, read at version 0.6.14.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from chitu_like.attention.base import AttentionSpec, ForwardBatch

CORE_GROUP_SIZES = (1, 2, 3)
"""Query heads a key head that go to the kernel without tensor cores; it also has 4 and 8, for which
FlashInfer recommends tensor cores, and nothing else."""

CTAS = 2
"""Programs of a multiprocessor that FlashInfer 0.6 plans for."""


class PagedWrapper(Protocol):
    """What we call of BatchDecodeWithPagedKVCacheWrapper and BatchPrefillWithPagedKVCacheWrapper."""

    def plan(self, *tables: Tensor | int, **options: object) -> None:
        """Divide a batch; its arrays on the host, the block ids on the device."""
        ...

    def run(
        self, q: Tensor, paged_kv_cache: tuple[Tensor, Tensor], *, q_scale: float, out: Tensor
    ) -> Tensor:
        """One layer."""
        ...

    def reset_workspace_buffer(self, float_workspace: Tensor, int_workspace: Tensor) -> None:
        """Use these from now on, and new pinned memory as large as the second."""
        ...


@dataclass(frozen=True, kw_only=True)
class HostTables:
    """How many blocks each request has, on the host.

    Attributes:
        indptr: [num_reqs + 1] int32, where each request's blocks start among all.
        last_block_lens: [num_reqs] int32, tokens in the last block of each.
    """

    indptr: Tensor
    last_block_lens: Tensor

    @classmethod
    def of(cls, context_lens: list[int], block_size: int) -> HostTables:
        """Of requests with so many tokens."""
        lens = np.array(context_lens, np.int32)
        num_blocks = -(-lens // block_size)
        indptr = np.zeros(len(lens) + 1, np.int32)
        np.cumsum(num_blocks, out=indptr[1:])
        last_block_lens = lens - (num_blocks - 1) * block_size
        return cls(
            indptr=torch.from_numpy(indptr), last_block_lens=torch.from_numpy(last_block_lens)
        )


class PinnedMemory:
    """Guards pinned memory that queued copies still read from being written again.

    It waits for the copies of the plan before, which stand in front of that plan's kernels: with one
    step queued behind the running one, for microseconds.

    Args:
        device: that copies go to; nothing is queued on a CPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._copied = torch.cuda.Event() if device.type == "cuda" else None

    def await_copies(self) -> None:
        """Before a plan."""
        if self._copied is not None:
            self._copied.synchronize()

    def note_copies(self) -> None:
        """After a plan."""
        if self._copied is not None:
            self._copied.record()


class Planner:
    """The arguments of plans that the model decides.

    Args:
        spec: the model's attention.
    """

    def __init__(self, spec: AttentionSpec) -> None:
        self._spec = spec
        self._shape = (spec.num_heads, spec.num_kv_heads, spec.head_dim, spec.block_size)

    def plan_decode(
        self, wrapper: PagedWrapper, host: HostTables, indices: Tensor, window: int | None
    ) -> None:
        """Plan the leading decodes of a batch.

        Args:
            wrapper: of decodes.
            host: of the decodes alone.
            indices: block ids on the device; none where the wrapper has its own.
            window: of the layers that this wrapper runs.
        """
        wrapper.plan(
            host.indptr, indices, host.last_block_lens, *self._shape, **self._options(window)
        )

    def replan_decode(
        self,
        fast_decode_plan: Callable[..., None],
        wrapper: PagedWrapper,
        host: HostTables,
        indices: Tensor,
        window: int | None,
    ) -> None:
        """Plan captured decodes again; only the division of work is copied to the device.

        Args:
            fast_decode_plan: FlashInfer's.
            wrapper: as planned for the capture.
            host: of the decodes now.
            indices: none of them: the wrapper's are written on the device.
            window: of the layers that this wrapper runs.
        """
        fast_decode_plan(
            wrapper,
            host.indptr,
            indices,
            host.last_block_lens,
            *self._shape,
            global_override_indptr_cpu=host.indptr,
            **self._options(window),
        )

    def plan_prefill(
        self,
        wrapper: PagedWrapper,
        host: HostTables,
        indices: Tensor,
        batch: ForwardBatch,
        window: int | None,
    ) -> None:
        """Plan the chunks behind a batch's decodes.

        Args:
            wrapper: of prefills.
            host: of the whole batch.
            indices: block ids of the whole batch, on the device.
            batch: theirs.
            window: of the layers that this wrapper runs.
        """
        first = batch.num_decodes
        qo_indptr = np.cumsum([0, *batch.query_lens[first:]], dtype=np.int32)
        wrapper.plan(
            torch.from_numpy(qo_indptr),
            host.indptr[first:],
            indices,
            host.last_block_lens[first:],
            *self._shape,
            causal=True,
            **self._options(window),
        )

    def _options(self, window: int | None) -> dict[str, object]:
        return {
            "window_left": -1 if window is None else window - 1,
            "q_data_type": self._spec.dtype,
            "kv_data_type": self._spec.dtype,
            "sm_scale": 1.0,  # `run` multiplies it by a layer's own
        }


def uses_tensor_cores(spec: AttentionSpec) -> bool:
    """Whether decodes take the kernel that multiplies a key head's whole group at once."""
    return spec.num_heads // spec.num_kv_heads not in CORE_GROUP_SIZES


def workspace_bytes(spec: AttentionSpec, num_sms: int) -> tuple[int, int]:
    """Room for partial results, and for the division of a captured step's work.

    A captured step of decodes is planned as if every tile were split, in float32; a prefill is split
    where its tiles do not fill the device.

    Args:
        spec: the model's attention.
        num_sms: multiprocessors.
    """
    group = spec.num_heads // spec.num_kv_heads
    rows = next(rows for rows in (16, 64, 128) if group <= rows or rows == 128)
    filling = CTAS * num_sms // spec.num_kv_heads
    tiles = max(filling, -(-spec.max_reqs * group // rows) + spec.max_reqs)
    num_rows = spec.num_heads * max(tiles * rows, filling * 128)
    room = num_rows * (spec.head_dim + 1) * torch.float32.itemsize
    return room + (1 << 20), 32 * (tiles + spec.max_reqs) + (64 << 10)
