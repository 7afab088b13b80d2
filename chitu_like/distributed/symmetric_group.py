"""SymmetricGroup: ranks of one node that reduce short messages by writing into each other's memory.

Only imported where there are CUDA devices; see symmetric.py.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.distributed._symmetric_memory as symmetric_memory
from torch import Tensor

from chitu_like.distributed.collectives import TorchGroup
from chitu_like.ops.triton import all_reduce as kernels
from chitu_like.ops.triton.all_reduce import (
    EMPTY_BYTE,
    MAX_PROGRAMS,
    NUM_PARITIES,
    PeerMemory,
    Shots,
)

BUFFER_BYTES = 64 << 20

# World size -> the longest message, in bytes, that one shot, and then two, reduce sooner than NCCL.
# Measured on H200s with 2 and 4 ranks (benchmarks/RESULTS.md), guessed for 8.
LONGEST = {2: (8 << 20, 0), 4: (256 << 10, 8 << 20), 8: (128 << 10, 8 << 20)}


def slot_bytes(world_size: int) -> int:
    """Bytes that a rank keeps for one message of one rank; see ops/triton/all_reduce.py."""
    return BUFFER_BYTES // (NUM_PARITIES * world_size)


class SymmetricGroup(TorchGroup):
    """Ranks on one node whose CUDA devices reach each other's memory; NCCL takes long messages.

    All calls are captured into CUDA graphs as they are. All ranks get the same bits.

    Args:
        group: this process is in it; 2, 4 or 8 ranks. All of them construct this at once.
        device: of this rank; its tensors alone are reduced.
        longest: the longest message, in bytes, that one shot takes, and then two; else as measured.

    Raises:
        RuntimeError: torch could not map the peers' memory.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        device: torch.device,
        longest: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(group)
        num_programs = self._num_programs(device)
        self._buffer = symmetric_memory.empty(BUFFER_BYTES, dtype=torch.uint8, device=device)
        self._buffer.fill_(EMPTY_BYTE)
        torch.cuda.synchronize(device)  # rendezvous is where all wait for all: it is empty by then
        handle = symmetric_memory.rendezvous(self._buffer, group)
        starts = [
            handle.get_buffer(rank, (BUFFER_BYTES,), torch.uint8).data_ptr()
            for rank in range(self.size)
        ]
        # torch may cut several tensors from one mapped piece; ours lies at one offset on all ranks.
        offset = self._buffer.data_ptr() - starts[self.rank]
        self._memory = PeerMemory(
            peers=torch.tensor([start + offset for start in starts], device=device),
            parities=torch.zeros(num_programs, dtype=torch.int32, device=device),
            rank=self.rank,
            world_size=self.size,
            slot_bytes=slot_bytes(self.size),
        )
        self._longest = longest or LONGEST[self.size]

    def _num_programs(self, device: torch.device) -> int:
        """Programs of a call: as many as run at once on the smallest of the devices."""
        num_processors = torch.cuda.get_device_properties(device).multi_processor_count
        everyones = self.all_gather(torch.tensor([num_processors], device=device))
        return min(MAX_PROGRAMS, int(everyones.min()) // self.size * self.size)

    def all_reduce(self, x: Tensor) -> Tensor:
        """See Group."""
        shots = self._shots(x)
        if shots is None or not kernels.supports(x):
            return super().all_reduce(x)
        return kernels.all_reduce(x, shots, self._memory)

    def all_reduce_add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, eps: float
    ) -> Tensor:
        """See Group; one kernel where x is short."""
        shots = self._shots(x)
        if shots is None or not kernels.supports_norm(x):
            return super().all_reduce_add_rms_norm(x, residual, weight, eps)
        return kernels.all_reduce_add_rms_norm(x, residual, weight, eps, shots, self._memory)

    def _shots(self, x: Tensor) -> Shots | None:
        """How to reduce x; None: with NCCL."""
        one, two = self._longest
        if x.nbytes <= one:
            return Shots.ONE
        return Shots.TWO if x.nbytes <= two else None
