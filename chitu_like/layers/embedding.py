"""Token embedding and the head that turns hidden states into logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chitu_like.layers.linear import ColumnParallelLinear
from chitu_like.layers.options import LayerOptions
from chitu_like.quantization.parameter import Shard, WeightParameter, stacked_layouts


class Embedding(nn.Module):
    """A row for each id.

    Args:
        num_rows: ids known.
        width: of a row.
        options: how layers are built.
    """

    def __init__(self, num_rows: int, width: int, options: LayerOptions) -> None:
        super().__init__()
        shape, layouts = stacked_layouts({None: Shard.whole(num_rows)}, (Shard.whole(width),))
        self.weight = WeightParameter(
            torch.empty(shape, dtype=options.dtype, device=options.device), layouts
        )

    def forward(self, ids: Tensor) -> Tensor:
        """Rows [num_tokens, width] of ids [num_tokens], a fresh tensor."""
        return F.embedding(ids, self.weight)


class LMHead(ColumnParallelLinear):
    """Hidden states to logits: a linear layer that may share the embedding's weight.

    Args:
        width: of the hidden states.
        vocab_size: number of logits.
        options: how layers are built.
    """

    def __init__(self, width: int, vocab_size: int, options: LayerOptions) -> None:
        super().__init__(width, vocab_size, has_bias=False, options=options)

    def tie(self, embedding: Embedding) -> None:
        """Use the embedding's weight; call before loading. The parameter is then one, not two."""
        self.weight = embedding.weight
        self.shares_weight = True
