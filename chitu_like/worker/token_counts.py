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
    """Counts over the vocabulary, by slot.

    The first request with a penalty makes room for all slots: memory is planned for as much, and
    counts that grew would need that room twice.

    Args:
        max_reqs: slots.
        vocab_size: width of the logits.
        device: where the counts live.
    """

    def __init__(self, max_reqs: int, vocab_size: int, device: torch.device) -> None:
        self._is_counted = np.zeros(max_reqs, np.bool_)
        self._vocab_size = vocab_size
        self._output_counts = torch.zeros(0, vocab_size, dtype=torch.int32, device=device)
        self._in_prompt = torch.zeros(0, vocab_size, dtype=torch.bool, device=device)

    def is_counted(self, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
        """[num_slots] whether each slot has counts."""
        return self._is_counted[slots]

    def set(self, slot: int, prompt: NDArray[np.int64], output: NDArray[np.int64]) -> None:
        """Count a slot's tokens from scratch."""
        if not len(self._output_counts):
            room = (len(self._is_counted), self._vocab_size)
            self._output_counts = self._output_counts.new_zeros(room)
            self._in_prompt = self._in_prompt.new_zeros(room)
        self._is_counted[slot] = True
        counts = self._output_counts[slot].zero_()
        device_output = upload(output, counts.device)
        counts.scatter_add_(0, device_output, torch.ones_like(device_output, dtype=torch.int32))
        self._in_prompt[slot].zero_().index_fill_(0, upload(prompt, counts.device), True)

    def drop(self, slot: int) -> None:
        """Count this slot no longer."""
        self._is_counted[slot] = False

    def add(self, slots: NDArray[np.int64], token_ids: Tensor) -> None:
        """Count one more output token, [num_slots] int64, of each slot; every one is counted."""
        rows = upload(slots, token_ids.device)
        self._output_counts[rows, token_ids] += 1  # a slot stands once in a batch

    def of(self, slots: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Output counts and prompt membership, each [num_slots, vocab_size], as copies."""
        rows = upload(slots, self._output_counts.device)
        return self._output_counts[rows], self._in_prompt[rows]
