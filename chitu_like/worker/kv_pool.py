"""The KV tensors of this rank, and the host memory that preempted requests wait in."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from chitu_like.attention.base import LayerKVCache
from chitu_like.kvcache.spec import KVCacheSpec
from chitu_like.ops.upload import upload

COPY_BLOCKS = 16
"""Blocks gathered at once before they cross to the host: what the copy needs of device memory,
which is otherwise planned to the last block."""


class KVPool:
    """Keys and values of all layers of this rank. Who holds which block is not known here.

    Args:
        spec: shape of a block.
        num_blocks: blocks on the device.
        num_host_blocks: blocks in host memory, pinned where the device is not the host.
        dtype: of the numbers; as wide as spec.dtype_bytes.
        device: where the pool is.

    Attributes:
        layers: by global layer index.
    """

    def __init__(
        self,
        spec: KVCacheSpec,
        *,
        num_blocks: int,
        num_host_blocks: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        assert dtype.itemsize == spec.dtype_bytes, f"{dtype} is not {spec.dtype_bytes} bytes wide"
        self._device = device
        block = (spec.block_size, spec.num_kv_heads, spec.head_dim)
        self.layers = {
            layer: LayerKVCache(
                _zeros((num_blocks, *block), dtype, device),
                _zeros((num_blocks, *block), dtype, device),
            )
            for layer in spec.layers
        }
        # [num_host_blocks, num_layers, 2, block_size, num_kv_heads, head_dim]: a block is one copy
        self._host = torch.empty(
            (num_host_blocks, len(spec.layers), 2, *block),
            dtype=dtype,
            pin_memory=device.type == "cuda" and num_host_blocks > 0,
        )

    def swap_out(self, pairs: list[tuple[int, int]]) -> None:
        """Copy (device block, host block) pairs, in the order of the device's work."""
        for device_ids, host_ids in _in_parts(pairs):
            index = upload(device_ids, self._device)
            gathered = torch.stack(
                [
                    torch.stack([cache.k[index], cache.v[index]], 1)
                    for cache in self.layers.values()
                ],
                dim=1,
            )  # [num_pairs, num_layers, 2, block_size, num_kv_heads, head_dim]
            for block, host_id in zip(gathered, host_ids.tolist(), strict=True):
                self._host[host_id].copy_(block, non_blocking=True)

    def swap_in(self, pairs: list[tuple[int, int]]) -> None:
        """Copy (host block, device block) pairs, in the order of the device's work."""
        for host_ids, device_ids in _in_parts(pairs):
            gathered = torch.stack(
                [self._host[i].to(self._device, non_blocking=True) for i in host_ids.tolist()]
            )  # [num_pairs, num_layers, 2, block_size, num_kv_heads, head_dim]
            index = upload(device_ids, self._device)
            for position, cache in enumerate(self.layers.values()):
                cache.k[index] = gathered[:, position, 0]
                cache.v[index] = gathered[:, position, 1]


def _in_parts(pairs: list[tuple[int, int]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The pairs as two columns, COPY_BLOCKS at a time."""
    for start in range(0, len(pairs), COPY_BLOCKS):
        part = np.array(pairs[start : start + COPY_BLOCKS], np.int64)
        yield part[:, 0].copy(), part[:, 1].copy()


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros: stale memory could hold a NaN, and NaN times a masked weight of 0 is NaN.

    On a CPU, pages that nobody has written yet take no memory and no time: a pool of gigabytes is
    there at once, and a service that is hardly used stays small.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    num_bytes = int(np.prod(shape)) * dtype.itemsize
    pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=dtype).view(shape)  # frees the pages with itself
