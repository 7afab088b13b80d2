"""What a rank's runner needs of a model."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from chitu_like.attention.base import ForwardBatch
from chitu_like.checkpoint.loader import LoadableModel


class Model(LoadableModel, Protocol):
    """A model, or this rank's part of one."""

    def forward(self, batch: ForwardBatch, hidden_states: Tensor | None = None) -> Tensor:
        """Hidden states behind this rank's last layer: [num_tokens, hidden_size].

        Args:
            batch: planned.
            hidden_states: of the stage before; None on the first. May be overwritten.
        """
        ...

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        """[num_rows, hidden_size] to [num_rows, vocab_size]; all ranks of the stage call it."""
        ...
