"""What a call costs on a device: replays of a CUDA graph there, a clock around it on a CPU.

A decode step runs inside a CUDA graph, so that is where its parts are timed: no launch costs but what a
graph costs. Calls on different data take turns, so that weights and caches larger together than the
last-level cache come from memory, as they do in a model of many layers.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

Call = Callable[[], object]

MIN_CALLS = 20
"""Calls a graph holds at least: the start of a replay is a few microseconds, shared by all of them."""
REPLAYS = 7
MIN_S = 2e-3  # what is timed lasts so long at least


def seconds_per_call(
    calls: Sequence[Call], device: torch.device, *, in_graph: bool = True
) -> float:
    """Median seconds of a call.

    Args:
        calls: the same work on different data, one at least; made to take turns.
        device: where they compute.
        in_graph: they can be captured; else their launches are part of the time. CUDA only.
    """
    if device.type != "cuda":
        return _by_clock(calls)
    return _in_graph(calls) if in_graph else _by_events(calls)


def cache_bytes(device: torch.device) -> int:
    """The last-level cache of a device; 0 on a CPU, whose figures are of calls as they come."""
    if device.type != "cuda":
        return 0
    return int(torch.cuda.get_device_properties(device).L2_cache_size)


def num_sets(streamed_bytes: int, device: torch.device, *, most: int = 64) -> int:
    """How many sets of data a measurement must take turns with, so that the cache keeps none.

    Args:
        streamed_bytes: of one call, what comes from memory in service.
        device: whose cache it is.
        most: not more, whatever the cache.
    """
    if streamed_bytes == 0:
        return 1
    return max(1, min(most, -(-4 * cache_bytes(device) // streamed_bytes)))


def _in_graph(calls: Sequence[Call]) -> float:
    for call in calls:  # kernels are compiled and workspaces made before the capture
        call()
    torch.cuda.synchronize()
    repeats = -(-MIN_CALLS // len(calls))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            for call in calls:
                call()
    return _between_events(graph.replay) / (repeats * len(calls))


def _by_events(calls: Sequence[Call]) -> float:
    def round_() -> None:
        for call in calls:
            call()

    return _between_events(round_) / len(calls)


def _between_events(launch: Callable[[], object]) -> float:
    """Median seconds on the device of what `launch` sends there."""

    def launches_s(count: int) -> float:
        start, end = (torch.Event("cuda", enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(count):
            launch()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3 / count

    launch()
    count = max(1, int(MIN_S / max(launches_s(1), 1e-7)))
    return statistics.median(launches_s(count) for _ in range(REPLAYS))


def _by_clock(calls: Sequence[Call]) -> float:
    def round_s(repeats: int) -> float:
        start_s = time.perf_counter()
        for _ in range(repeats):
            for call in calls:
                call()
        return (time.perf_counter() - start_s) / (repeats * len(calls))

    first_s = round_s(1)  # warms up too
    repeats = max(1, int(MIN_S / max(first_s * len(calls), 1e-7)))
    return statistics.median(round_s(repeats) for _ in range(REPLAYS))
