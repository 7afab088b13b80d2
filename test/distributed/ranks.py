"""Run a function as several ranks over gloo: a process each, one deadline for all."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch.distributed as dist

TIMEOUT_S = 120.0


def run_ranks(
    function: Callable[..., Any], num_ranks: int, *args: object, timeout_s: float = TIMEOUT_S
) -> list[Any]:
    """Call `function(rank, *args)` on each rank, with the default group of torch.distributed there.

    Args:
        function: of a module that a fresh process can import: a helper's, not a test's.
        num_ranks: processes.
        args: sent to each.
        timeout_s: for all of it; whoever still runs then is killed.

    Returns: what the ranks returned, by rank.
    Raises: AssertionError with the traceback of the first rank that raised.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        processes, ends = [], []
        for rank in range(num_ranks):
            end, theirs = context.Pipe(duplex=False)
            target_args = (theirs, Path(folder) / "store", rank, num_ranks, function, args)
            process = context.Process(target=_rank_main, args=target_args, daemon=True)
            process.start()
            theirs.close()  # so that its end is seen when the process dies
            processes.append(process)
            ends.append(end)
        try:
            return _collect(ends, time.monotonic() + timeout_s)
        finally:
            for process in processes:
                process.kill()
                process.join()


def _collect(ends: list[Connection], deadline_s: float) -> list[Any]:
    found: dict[int, Any] = {}
    waiting = {end: rank for rank, end in enumerate(ends)}
    while waiting:
        ready = wait(list(waiting), timeout=max(0.0, deadline_s - time.monotonic()))
        if not ready:
            raise AssertionError(f"ranks {sorted(waiting.values())} have not ended in time")
        for end in ready:
            assert isinstance(end, Connection)
            rank = waiting.pop(end)
            try:
                fault, found[rank] = pickle.loads(end.recv_bytes())
            except EOFError:
                fault = "its process died"
            if fault is not None:
                raise AssertionError(f"rank {rank}: {fault}")
    return [found[rank] for rank in range(len(ends))]


def _rank_main(
    end: Connection,
    store: Path,
    rank: int,
    num_ranks: int,
    function: Callable[..., Any],
    args: tuple[object, ...],
) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    try:
        dist.init_process_group(
            "gloo",
            store=dist.FileStore(str(store), num_ranks),
            rank=rank,
            world_size=num_ranks,
            timeout=timedelta(seconds=60),
        )
        # pickle's own way with tensors: multiprocessing's shares memory with a process soon dead
        end.send_bytes(pickle.dumps((None, function(rank, *args))))
        dist.barrier()  # nobody leaves while others still talk to it
    except BaseException:
        end.send_bytes(pickle.dumps((traceback.format_exc(), None)))
