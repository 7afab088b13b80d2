"""What this process has to compute with: device, threads, memory."""

from __future__ import annotations

import importlib.util
import math
import os
import platform
import shutil
from pathlib import Path
from typing import Literal

import torch

from chitu_like.config.device_facts import DeviceFacts
from chitu_like.config.schema import DeviceType
from chitu_like.core.errors import ConfigError

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
BYTES_PER_THREAD = 128 << 20
"""Weights that pay for one more thread. Measured on two cores: the 11 MiB of tiny-chat take 3.3 ms a
step on one thread and 7.4 ms on two, the 1 GB of Qwen2.5-0.5B gain. In between it is a guess."""
_CGROUP_MEMORY = (
    ("memory.max", "memory.current", "memory.stat"),  # version 2
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)


def device_facts(
    device: DeviceType | Literal["auto"], index: int = 0, *, num_local_ranks: int = 1
) -> DeviceFacts:
    """What the configuration must know of this rank's device before it decides each `auto`.

    Args:
        device: which kind; auto: cuda where there is one. Where cuda is asked for and there is none,
            the facts are the CPU's, and the configuration says so to the user.
        index: of the CUDA device that is this rank's.
        num_local_ranks: ranks of this node, each of which needs a CUDA device of its own.

    Raises: ConfigError where there are fewer CUDA devices than ranks.
    """
    if device != "cpu" and torch.cuda.is_available():
        require_devices(num_local_ranks)
        return _measure_cuda(index)
    free = available_host_bytes()
    return DeviceFacts(
        device="cpu",
        name=_cpu_name(),
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        free_bytes=free,
        host_free_bytes=free,
        num_devices=1,
        num_cpu_cores=count_cores(),
        supports_bf16=True,  # oneDNN computes it on every x86 with AVX2 and on Arm
    )


def require_devices(num_local_ranks: int) -> None:
    """Each rank of a node computes on a CUDA device of its own.

    Raises: ConfigError where there are fewer than `num_local_ranks`.
    """
    num_devices = torch.cuda.device_count()
    if num_devices < num_local_ranks:
        raise ConfigError(
            f"torchrun started {num_local_ranks} ranks on a node with {num_devices} CUDA devices: "
            f"use --nproc_per_node {num_devices} and more nodes, lower infer.tp_size or "
            "infer.pp_size, or set infer.device=cpu"
        )


def set_thread_count(local_world_size: int = 1, *, weight_bytes: int | None = None) -> int:
    """Give this rank its share of the cores; torchrun would leave it one (OMP_NUM_THREADS=1).

    Call it before the first torch operation. A number of our own counts the cores this process may
    really use, where torch would count those of the machine.

    Args:
        local_world_size: ranks on this node.
        weight_bytes: of a model that is computed on these cores: a small one is done before a
            second thread has woken up. None: all cores are of use.
    Returns: the threads torch now uses.
    """
    num_threads = max(1, count_cores() // local_world_size)
    if weight_bytes is not None:
        num_threads = min(num_threads, 1 + weight_bytes // BYTES_PER_THREAD)
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


def _measure_cuda(index: int) -> DeviceFacts:
    free, total = torch.cuda.mem_get_info(index)
    capability = torch.cuda.get_device_capability(index)
    return DeviceFacts(
        device="cuda",
        name=torch.cuda.get_device_name(index),
        memory_bytes=total,
        free_bytes=free,
        host_free_bytes=available_host_bytes(),
        num_devices=torch.cuda.device_count(),
        num_cpu_cores=count_cores(),
        supports_bf16=capability >= (8, 0),
        compute_capability=capability,
        has_triton=importlib.util.find_spec("triton") is not None,
        has_flashinfer=_has_flashinfer(),
    )


def _has_flashinfer() -> bool:
    """It is installed, and so are its kernels, or the compiler that it makes them with."""
    if importlib.util.find_spec("flashinfer") is None:
        return False
    if importlib.util.find_spec("flashinfer_jit_cache") is not None:
        return True
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    return shutil.which("nvcc") is not None or (home / "bin" / "nvcc").exists()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


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
