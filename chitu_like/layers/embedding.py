"""Token embedding and the head that turns hidden states into logits, cut along the vocabulary."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chitu_like.layers.linear import Linear
from chitu_like.layers.norm import RMSNorm
from chitu_like.layers.options import LayerOptions
from chitu_like.ops.embedding import embed_rms_norm_op
from chitu_like.quantization.parameter import Shard, WeightParameter, stacked_layouts


class Embedding(nn.Module):
    """A row for each id, all of them on every rank.

    Args:
        num_rows: ids known.
        width: of a row.
        options: how layers are built.
        rows: this rank's share of them; None: all.
    """

    def __init__(
        self, num_rows: int, width: int, options: LayerOptions, *, rows: Shard | None = None
    ) -> None:
        super().__init__()
        rows = rows or Shard.whole(num_rows)
        shape, layouts = stacked_layouts({None: rows}, (Shard.whole(width),))
        self.weight = WeightParameter(
            torch.empty(shape, dtype=options.dtype, device=options.device), layouts
        )
        _clear_padding(self.weight, rows)

    def forward(self, ids: Tensor) -> Tensor:
        """Rows [num_tokens, width] of ids [num_tokens], a fresh tensor."""
        return F.embedding(ids, self.weight)


class VocabParallelEmbedding(Embedding):
    """A row for each token id; each rank holds some of the rows.

    Args:
        vocab_size: ids known.
        width: of a row.
        options: how layers are built.
    """

    def __init__(self, vocab_size: int, width: int, options: LayerOptions) -> None:
        tp = options.parallel.tp
        rows = Shard.padded(vocab_size, tp.rank, tp.size)
        super().__init__(vocab_size, width, options, rows=rows)
        self._tp, self._rows = tp, rows
        self._embed_rms_norm = embed_rms_norm_op.resolve(
            options.device, options.dtype, options.op_impl
        )

    def forward(self, ids: Tensor) -> Tensor:
        """See Embedding. Each row comes from the one rank that holds it; the others add zeros."""
        if self._tp.size == 1:
            return super().forward(ids)
        row = ids - self._rows.start
        is_elsewhere = (row < 0) | (row >= self._rows.size)
        x = super().forward(row.masked_fill_(is_elsewhere, 0))
        return self._tp.all_reduce(x.masked_fill_(is_elsewhere.unsqueeze(1), 0))

    def with_norm(self, ids: Tensor, norm: RMSNorm) -> tuple[Tensor, Tensor]:
        """What `forward` returns, and its norm: the residual stream and the first layer's input."""
        if self._tp.size == 1:
            return self._embed_rms_norm(ids, self.weight, norm.weight, norm.eps)
        x = self(ids)
        return x, norm(x)


class LMHead(Linear):
    """Hidden states to logits: a linear layer that may share the embedding's weight.

    Each rank computes the logits of some tokens, and gets all of them.

    Args:
        width: of the hidden states.
        vocab_size: number of logits.
        options: how layers are built.
    """

    def __init__(self, width: int, vocab_size: int, options: LayerOptions) -> None:
        tp = options.parallel.tp
        shards = [Shard.padded(vocab_size, rank, tp.size) for rank in range(tp.size)]
        rows = shards[tp.rank]
        super().__init__({None: rows}, Shard.whole(width), has_bias=False, options=options)
        _clear_padding(self.weight, rows)
        self._tp, self._sizes = tp, [shard.size for shard in shards]
        self._is_first_stage = options.parallel.is_first_stage

    def tie(self, embedding: VocabParallelEmbedding) -> None:
        """Use the embedding's weight; call before loading. The parameter is then one, not two."""
        self.weight = embedding.weight
        self.shares_weight = self._is_first_stage  # the only one that looks tokens up

    def forward(self, x: Tensor) -> Tensor:
        """X [num_rows, width], the same on every rank -> logits [num_rows, vocab_size]."""
        logits = self.kernel(x)
        if self._tp.size == 1:
            return logits
        parts = self._tp.all_gather(logits)  # [tp_size, num_rows, num_held]
        return torch.cat([part[:, :n] for part, n in zip(parts, self._sizes, strict=True)], 1)


def _clear_padding(weight: Tensor, rows: Shard) -> None:
    """Nothing is loaded there, and what is multiplied with must be a number."""
    weight.data[rows.size :].zero_()
