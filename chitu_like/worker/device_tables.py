"""The block tables of all slots where kernels read them, kept up by what changes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from chitu_like.ops.upload import upload


class DeviceTables:
    """A mirror on the device of Slots.block_tables.

    What stands behind a slot's blocks is what an earlier request left there: ids of real blocks,
    which nobody reads.

    Args:
        max_reqs: slots.
        max_blocks: blocks that the longest request needs.
        padding_block: the only block of the row behind the slots.
        device: where the tables are.

    Attributes:
        tables: [max_reqs + 1, max_blocks] int32.
    """

    def __init__(
        self, max_reqs: int, max_blocks: int, padding_block: int, device: torch.device
    ) -> None:
        self.tables = torch.zeros(max_reqs + 1, max_blocks, dtype=torch.int32, device=device)
        self.tables[max_reqs] = padding_block
        self._at: list[int] = []  # in the flattened tables, no place twice
        self._block_ids: list[int] = []

    def note(self, slot: int, start: int, block_ids: Sequence[int]) -> None:
        """These are a slot's blocks from its `start`th on, once `flush` was called."""
        first = slot * self.tables.shape[1] + start
        self._at.extend(range(first, first + len(block_ids)))
        self._block_ids.extend(block_ids)

    def flush(self) -> None:
        """Queue what was noted: one upload and one scatter, or nothing."""
        if not self._at:
            return
        changes = np.array((self._at, self._block_ids), np.int64)
        at, block_ids = upload(changes, self.tables.device)
        self.tables.view(-1)[at] = block_ids.int()
        self._at.clear()
        self._block_ids.clear()
