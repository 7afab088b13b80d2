"""Work recorded once and repeated: on a CUDA device as a graph, which costs the host one launch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch


class Recording(Protocol):
    """Work that can be repeated on the tensors it was recorded with."""

    def replay(self) -> None:
        """Queue the work once more, on the current stream."""
        ...


class Recorder(Protocol):
    """Makes recordings. What one of them computes is valid until another one is replayed."""

    def record(self, work: Callable[[], None]) -> Recording:
        """Record `work`, which reads and writes the same tensors each time; it runs once or more."""
        ...


class CudaGraphRecorder:
    """Records CUDA graphs that share one pool of memory: only one of them runs at a time.

    Args:
        device: where the work runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def record(self, work: Callable[[], None]) -> Recording:
        """See Recorder. The work runs once before, so that what it compiles and allocates is there."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            work()
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # thread_local: NCCL's watchdog asks for events from a thread of its own meanwhile.
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            work()
        return graph
