"""The head beside a tied embedding: one weight, kept as long as somebody looks rows up in it."""

from __future__ import annotations

import pytest
import torch

from chitu_like.distributed.collectives import SoloGroup
from chitu_like.distributed.parallel_context import ParallelContext
from chitu_like.layers.embedding import LMHead, VocabParallelEmbedding
from chitu_like.layers.options import LayerOptions
from chitu_like.ops.linear_cpu import can_pack
from chitu_like.quantization.base import Unquantized

VOCAB_SIZE, WIDTH = 203, 64


def tied(pp_rank: int, pp_size: int) -> tuple[VocabParallelEmbedding, LMHead]:
    options = LayerOptions(
        parallel=ParallelContext(pp_rank=pp_rank, pp_size=pp_size, tp=SoloGroup()),
        quant_method=Unquantized(),
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    embedding = VocabParallelEmbedding(VOCAB_SIZE, WIDTH, options)
    head = LMHead(WIDTH, VOCAB_SIZE, options)
    head.tie(embedding)
    return embedding, head


@pytest.mark.parametrize(("pp_rank", "pp_size"), [(0, 1), (1, 2)])
def test_a_tied_weight_stays_only_where_tokens_are_embedded(pp_rank: int, pp_size: int) -> None:
    embedding, head = tied(pp_rank, pp_size)
    weight = torch.randn(VOCAB_SIZE, WIDTH)
    embedding.weight.load("embed_tokens.weight", weight)
    head.process_after_load()
    x = torch.randn(3, WIDTH)
    torch.testing.assert_close(head(x), x @ weight.t())
    if pp_size == 1:
        assert torch.equal(embedding(torch.tensor([5, 202])), weight[[5, 202]])
    elif can_pack(weight):
        assert embedding.weight.numel() == 0, "a copy that nobody reads"
