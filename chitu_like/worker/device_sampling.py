"""How every slot's tokens are drawn, where kernels read it, kept up by what changes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from chitu_like.ops.draw import NUM_PARAMS
from chitu_like.ops.upload import upload
from chitu_like.worker.sampling_table import SamplingTable


class DeviceSampling:
    """A mirror on the device of SamplingTable.draw_params.

    Args:
        max_reqs: slots.
        device: where the parameters are.

    Attributes:
        params: [max_reqs + 1, NUM_PARAMS] int32, see ops/draw.py; the row behind the slots is greedy.
    """

    def __init__(self, max_reqs: int, device: torch.device) -> None:
        self.params = torch.zeros(max_reqs + 1, NUM_PARAMS, dtype=torch.int32, device=device)

    def apply(self, slots: Sequence[int], table: SamplingTable) -> None:
        """Queue what `table` now says of `slots`: one upload and one scatter, or nothing.

        Args:
            slots: new or resumed, none twice.
            table: has taken in their rows.
        """
        if not slots:
            return
        index = np.array(slots, np.int32)
        changes = np.concatenate((index[:, None], table.draw_params[index]), axis=1)
        uploaded = upload(changes, self.params.device)  # [num_slots, 1 + NUM_PARAMS]
        self.params[uploaded[:, 0].long()] = uploaded[:, 1:]
