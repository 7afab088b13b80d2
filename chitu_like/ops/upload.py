"""Host arrays to the device, without waiting for it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def upload(values: NDArray[np.generic], device: torch.device) -> Tensor:
    """A host array as a tensor on `device`.

    Elsewhere than on a CPU the copy goes through pinned memory and is ordered on the current
    stream. On a CPU the tensor shares the array's memory: the array must not change afterwards.
    """
    host = torch.from_numpy(values)
    if device.type == "cpu":
        return host
    return host.pin_memory().to(device, non_blocking=True)
