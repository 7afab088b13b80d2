"""Work recorded once and repeated: on a CUDA device as graphs, each of which costs the host one launch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

Cut = Callable[[Callable[[Tensor], None], Tensor], None]
"""`cut(call, x)`, inside work that is being recorded: here comes `call(x)`, which is no part of the
recording. It is not made yet, but anew with each replay; x, computed before, then holds what the replay
has made of it until the call returns."""


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

    def record_each(self, works: Sequence[Callable[[], object]]) -> list[Recording]:
        """As `record` for each, in a fraction of the time, of work that runs between pieces.

        What it computes on the way shares no memory with those.
        """
        ...

    def record_pieces(self, work: Callable[[Cut], None]) -> Recording:
        """Record what lies before, between and behind the cuts of `work`, all of it on one stream."""
        ...


class CudaGraphRecorder:
    """Records CUDA graphs that share one pool of memory: only one of them runs at a time.

    Those that run while another is between two pieces have a pool of their own.

    Args:
        device: where the work runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._pool_between = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def record(self, work: Callable[[], None]) -> Recording:
        """See Recorder. The work runs once before, so that what it compiles and allocates is there."""
        self._rehearse(work)
        graph = torch.cuda.CUDAGraph()
        # thread_local: NCCL's watchdog asks for events from a thread of its own meanwhile.
        with torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            work()
        return graph

    def record_each(self, works: Sequence[Callable[[], object]]) -> list[Recording]:
        """See Recorder."""
        recordings: list[Recording] = []
        for work in works:
            self._rehearse(work)
        with self._ready_stream():
            for work in works:
                graph = self._begin(is_between=True)
                try:
                    work()
                finally:
                    graph.capture_end()
                recordings.append(graph)
        return recordings

    def record_pieces(self, work: Callable[[Cut], None]) -> Recording:
        """See Recorder. The work runs once before, as in `record`, without what it hands to cuts."""
        self._rehearse(partial(work, _leave_out))
        with self._ready_stream():
            pieces = _Pieces(self._begin)
            try:
                work(pieces.cut)
            finally:
                pieces.end()
        return pieces

    def _begin(self, *, is_between: bool = False) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        pool = self._pool_between if is_between else self._pool
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        return graph

    def _ready_stream(self) -> torch.cuda.StreamContext:
        """The stream, after what torch.cuda.graph does before a capture: once, for it takes its time."""
        torch.cuda.synchronize(self._stream.device)
        torch.cuda.empty_cache()
        return torch.cuda.stream(self._stream)

    def _rehearse(self, work: Callable[[], object]) -> None:
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            work()
        current.wait_stream(self._stream)


class _Pieces:
    """Graphs with calls between them. All graphs allocate from one pool, and are replayed as captured.

    Args:
        begin: begins the capture of a graph on the current stream.
    """

    def __init__(self, begin: Callable[[], torch.cuda.CUDAGraph]) -> None:
        self._begin = begin
        self._parts: list[Callable[[], None]] = []
        self._graph = begin()

    def cut(self, call: Callable[[Tensor], None], x: Tensor) -> None:
        """See Cut."""
        self.end()
        self._parts.append(partial(call, _borrow(x)))
        self._graph = self._begin()

    def end(self) -> None:
        """End the capture that is under way."""
        self._graph.capture_end()
        self._parts.append(self._graph.replay)

    def replay(self) -> None:
        """See Recording."""
        for part in self._parts:
            part()


class _Memory:
    """Bytes on a CUDA device, as others ask for them.

    Args:
        address: of the first.
        num_bytes: from there.
    """

    def __init__(self, address: int, num_bytes: int) -> None:
        self.__cuda_array_interface__ = {
            "data": (address, False),
            "shape": (num_bytes,),
            "typestr": "|u1",
            "version": 2,
        }


def _borrow(x: Tensor) -> Tensor:
    """The same tensor, but its memory is the pool's again once x is gone: later pieces may take it.

    Were it kept instead, each layer would hold memory of its own for its queries.
    """
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    memory = _Memory(x.data_ptr(), (last + 1) * x.itemsize)
    borrowed = torch.as_tensor(memory, device=x.device)
    return borrowed.view(x.dtype).as_strided(x.shape, x.stride())


def _leave_out(call: Callable[[Tensor], None], x: Tensor) -> None:
    """A cut of work that runs only to have run."""
