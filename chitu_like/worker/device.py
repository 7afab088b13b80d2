"""What this process has to compute with: device, threads, memory."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
_CGROUP_MEMORY = (
    ("memory.max", "memory.current", "memory.stat"),  # version 2
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)


def set_thread_count(local_world_size: int = 1) -> int:
    """Give this rank its share of the cores; torchrun would leave it one (OMP_NUM_THREADS=1).

    Call it before the first torch operation. A number of our own counts the cores this process may
    really use, where torch would count those of the machine.

    Args:
        local_world_size: ranks on this node.
    Returns: the threads torch now uses.
    """
    num_threads = max(1, count_cores() // local_world_size)
    torch.set_num_threads(num_threads)
    return num_threads


def count_cores() -> int:
    """Cores this process may use: its affinity mask, cut by the cgroup's CPU quota."""
    if hasattr(os, "sched_getaffinity"):
        num_cores = len(os.sched_getaffinity(0))
    else:  # not Linux
        num_cores = os.cpu_count() or 1
    return max(1, math.floor(min(num_cores, _cgroup_quota())))


def available_host_bytes() -> int:
    """Memory this process can still take without swapping: the system's, cut by the cgroup's."""
    available = _system_available_bytes()
    for limit_file, usage_file, stat_file in _CGROUP_MEMORY:
        limit, usage = _read_number(_CGROUP / limit_file), _read_number(_CGROUP / usage_file)
        if limit is not None and usage is not None:
            available = min(available, limit - usage + _page_cache_bytes(_CGROUP / stat_file))
    return max(0, available)


def _system_available_bytes() -> int:
    try:
        fields = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
    except OSError:  # not Linux: no count of what is free, so half of what there is
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return int(fields["MemAvailable"].split()[0]) * 1024


def _page_cache_bytes(stat: Path) -> int:
    """What a cgroup's usage counts though it would be given up: pages of files, such as weights."""
    try:
        fields = dict(line.split() for line in stat.read_text().splitlines())
    except OSError:
        return 0
    return int(fields.get("inactive_file", 0)) + int(fields.get("active_file", 0))


def _cgroup_quota() -> float:
    """Cores by the cgroup's CPU quota; inf where none is set."""
    quota = _read_number(_CGROUP / "cpu/cpu.cfs_quota_us")  # version 1; -1 where none is set
    period = _read_number(_CGROUP / "cpu/cpu.cfs_period_us")
    try:
        first, second = (_CGROUP / "cpu.max").read_text().split()  # version 2
        quota, period = (int(first) if first.isdigit() else None), int(second)
    except OSError:  # not version 2
        pass
    return quota / period if quota and period else math.inf


def _read_number(path: Path) -> int | None:
    """The number a file holds; None where there is no file, or a word such as "max"."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
