"""Log-probabilities of chosen tokens and of their best rivals: on the device, then as entries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from chitu_like.core.output import TokenLogprobs


class LogprobTensors(NamedTuple):
    """Log-probabilities of several rows, still on the device.

    Attributes:
        token_ids: [num_rows] int64, the tokens that stand there.
        logprobs: [num_rows] float32.
        ranks: [num_rows] int64, 1 + how many tokens are more probable.
        top_logprobs: [num_rows, num_top] float32, best first.
        top_ids: [num_rows, num_top] int64.
    """

    token_ids: Tensor
    logprobs: Tensor
    ranks: Tensor
    top_logprobs: Tensor
    top_ids: Tensor


def compute_logprobs(logits: Tensor, token_ids: Tensor, num_top: int) -> LogprobTensors:
    """Natural log-probabilities of `token_ids`, taken in float32.

    Args:
        logits: [num_rows, vocab_size], any float dtype, not modified.
        token_ids: [num_rows] int64.
        num_top: most probable tokens to report; cut to the vocabulary.
    """
    logprobs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
    chosen = logprobs.gather(1, token_ids[:, None])
    top = logprobs.topk(min(num_top, logprobs.shape[1]), dim=-1)
    return LogprobTensors(
        token_ids=token_ids,
        logprobs=chosen[:, 0],
        ranks=(logprobs > chosen).sum(dim=-1) + 1,
        top_logprobs=top.values,
        top_ids=top.indices,
    )


@dataclass(frozen=True, kw_only=True)
class RowLogprobs:
    """Log-probabilities on their way to the host.

    Attributes:
        tensors: on the device; with as many rivals as the greediest row wants.
        num_top: [num_rows] rivals that each row asked for.
    """

    tensors: LogprobTensors
    num_top: list[int]

    def to_entries(self, arrived: LogprobTensors) -> list[TokenLogprobs]:
        """One entry a row; `arrived` are the tensors on the host."""
        columns = [column.tolist() for column in arrived]
        return [
            TokenLogprobs(token_id, logprob, rank, _best_first(values, ids)[:count])
            for token_id, logprob, rank, values, ids, count in zip(
                *columns, self.num_top, strict=True
            )
        ]


def _best_first(logprobs: list[float], token_ids: list[int]) -> list[tuple[int, float]]:
    """Pairs in order of probability; of equals the smaller id first, as greedy decoding chooses."""
    pairs = zip(token_ids, logprobs, strict=True)
    return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))
