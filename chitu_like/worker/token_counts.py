"""Which tokens a request has seen: what penalties look at, kept on the device.

With overlap the host learns a sampled token one step late, so the counts are updated on the device
as soon as a token is drawn.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chitu_like.ops.upload import upload


class TokenCounts:
    """Counts over the vocabulary for the slots that have a penalty; others cost nothing.

    Args:
        max_reqs: slots.
        vocab_size: width of the logits.
        device: where the counts live.
    """

    def __init__(self, max_reqs: int, vocab_size: int, device: torch.device) -> None:
        self._row_of = np.full(max_reqs, -1, np.int64)  # [max_reqs], -1: the slot is not counted
        self._output_counts = torch.zeros(0, vocab_size, dtype=torch.int32, device=device)
        self._in_prompt = torch.zeros(0, vocab_size, dtype=torch.bool, device=device)

    def is_counted(self, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        """[num_slots] whether each slot has counts."""
        return self._row_of[slots] >= 0

    def set(self, slot: int, prompt: NDArray[np.int64], output: NDArray[np.int64]) -> None:
        """Count a slot's tokens from scratch."""
        row = int(self._row_of[slot])
        if row < 0:
            row = self._row_of[slot] = self._find_row()
        counts = self._output_counts[row].zero_()
        device_output = upload(output, counts.device)
        counts.scatter_add_(0, device_output, torch.ones_like(device_output, dtype=torch.int32))
        self._in_prompt[row].zero_().index_fill_(0, upload(prompt, counts.device), True)

    def drop(self, slot: int) -> None:
        """Count this slot no longer; its room is used again."""
        self._row_of[slot] = -1

    def add(self, slots: NDArray[np.int64], token_ids: Tensor) -> None:
        """Count one more output token, [num_slots] int64, of each slot; every one is counted."""
        rows = upload(self._row_of[slots], token_ids.device)
        self._output_counts[rows, token_ids] += 1  # a slot stands once in a batch

    def of(self, slots: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Output counts and prompt membership, each [num_slots, vocab_size], as copies."""
        rows = upload(self._row_of[slots], self._output_counts.device)
        return self._output_counts[rows], self._in_prompt[rows]

    def _find_row(self) -> int:
        """A free row; the tensors double where there is none."""
        capacity = self._output_counts.shape[0]
        free = np.setdiff1d(np.arange(capacity), self._row_of)
        if free.size:
            return int(free[0])
        self._output_counts = _grow(self._output_counts)
        self._in_prompt = _grow(self._in_prompt)
        return capacity


def _grow(rows: Tensor) -> Tensor:
    """Twice the rows, at least one; the new ones are zero."""
    return torch.cat([rows, rows.new_zeros(max(1, rows.shape[0]), rows.shape[1])])
