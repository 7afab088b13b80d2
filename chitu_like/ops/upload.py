"""Host arrays to the device, without waiting for it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def upload(values: NDArray[np.generic], device: torch.device, out: Tensor | None = None) -> Tensor:
    """A host array as a tensor on `device`.

    Elsewhere than on a CPU the copy goes through pinned memory and is ordered on the current
    stream. On a CPU the tensor shares the array's memory: the array must not change afterwards.

    Args:
        values: the array.
        device: where they go.
        out: there, of the same shape and dtype: written to and returned; None: a new tensor.
    """
    host = torch.from_numpy(values)
    if device.type != "cpu":
        host = host.pin_memory()
    return host.to(device, non_blocking=True) if out is None else out.copy_(host, non_blocking=True)
