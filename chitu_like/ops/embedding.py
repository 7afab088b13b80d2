"""Token embedding together with the norm that reads it first."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from chitu_like.ops.norm import rms_norm
from chitu_like.ops.registry import Op


def embed_rms_norm(ids: Tensor, table: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Look rows up, and normalise them as `rms_norm` does.

    Args:
        ids: [num_tokens] int64, each a row of the table.
        table: [num_rows, hidden_size], contiguous.
        weight: [hidden_size], of the norm.
        eps: of the norm.

    Returns: the rows and their norm, each [num_tokens, hidden_size], fresh, dtype of the table.
    """
    embedded = F.embedding(ids, table)
    return embedded, rms_norm(embedded, weight, eps)


embed_rms_norm_op = Op("embed_rms_norm", embed_rms_norm)
