"""The measured roof of a device: how fast it reads memory and multiplies matrices at best.

Datasheets promise more than any program gets. A kernel is held against what a plain reduction reads
and what the vendor's library multiplies, on this card, today.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from chitu_like.bench.device_timing import seconds_per_call

READ_BYTES = {"cuda": 4 << 30, "cpu": 256 << 20}
MATMUL_SIZE = {"cuda": 8192, "cpu": 512}


@dataclass(frozen=True, kw_only=True)
class Roof:
    """What a device does at most.

    Attributes:
        read_bytes_per_s: of device memory.
        matmul_flops_per_s: of a large square matrix product; a multiplication and an addition count
            as two.
    """

    read_bytes_per_s: float
    matmul_flops_per_s: float

    def floor_s(self, num_bytes: float, num_flops: float) -> float:
        """Seconds below which work of so many bytes and operations cannot fall."""
        return max(num_bytes / self.read_bytes_per_s, num_flops / self.matmul_flops_per_s)


def measure_roof(device: torch.device, dtype: torch.dtype) -> Roof:
    """Measure for about a second.

    Args:
        device: "cuda" or "cpu".
        dtype: of the matrices; their numbers are random, since zeros multiply faster.
    """
    roof = Roof(
        read_bytes_per_s=_read_bytes_per_s(device),
        matmul_flops_per_s=_matmul_flops_per_s(device, dtype),
    )
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what comes next plans with what the driver calls free
    return roof


def _read_bytes_per_s(device: torch.device) -> float:
    num_bytes = READ_BYTES[device.type]
    read = torch.ones(num_bytes // 8, dtype=torch.int64, device=device)
    return num_bytes / seconds_per_call([read.sum], device)


def _matmul_flops_per_s(device: torch.device, dtype: torch.dtype) -> float:
    size = MATMUL_SIZE[device.type]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / seconds_per_call([lambda: a @ b], device)
