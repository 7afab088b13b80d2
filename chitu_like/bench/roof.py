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
    num_bytes, size = READ_BYTES[device.type], MATMUL_SIZE[device.type]
    read = torch.ones(num_bytes // 8, dtype=torch.int64, device=device)
    read_s = seconds_per_call([read.sum], device)
    del read
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    matmul_s = seconds_per_call([lambda: a @ b], device)
    return Roof(read_bytes_per_s=num_bytes / read_s, matmul_flops_per_s=2 * size**3 / matmul_s)
