"""A service that nobody asks costs next to nothing, on every rank, and answers at once afterwards."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest
from service_process import Server

IDLE_S = 8.0
MOST_CPU = 0.05


def cpu_shares(server: Server, seconds: float) -> dict[str, float]:
    """CPU share of each process of the service over so many seconds, by what it is."""
    before = {process: _cpu_s(process) for process in server.family()}
    time.sleep(seconds)
    return {
        f"{process.pid} {' '.join(process.cmdline()[1:4])}": (_cpu_s(process) - start_s) / seconds
        for process, start_s in before.items()
    }


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


@pytest.mark.slow
def test_idle_ranks_sleep(tmp_path: Path) -> None:
    """Ranks in groups of both kinds; those of tensor parallelism alone: test_failure.py."""
    server = Server(tmp_path, "infer.tp_size=2", "infer.pp_size=2", num_ranks=4)
    try:
        client = server.wait_ready().client()

        def answer() -> str:
            done = client.completions.create(
                model="tiny-chat", prompt="Hello", max_tokens=8, temperature=0.0
            )
            return done.choices[0].text

        first = answer()
        shares = cpu_shares(server, IDLE_S)
        assert len(shares) >= 2 + 4  # torchrun, its ranks, the front end
        assert max(shares.values()) < MOST_CPU, shares
        assert answer() == first
    finally:
        server.close()
