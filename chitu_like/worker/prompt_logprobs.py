"""Log-probabilities of prompt tokens: what each prompt position predicted of the one behind it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from chitu_like.core.batch import ScheduledBatch
from chitu_like.ops.upload import upload
from chitu_like.worker.logprobs import LogprobTensors, RowLogprobs, compute_logprobs
from chitu_like.worker.slots import Slots

ROWS_AT_ONCE = 128
"""Positions whose logits are alive together: 128 of a vocabulary of 150k are 78 MB in float32."""


def gather_prompt_logprobs(
    batch: ScheduledBatch,
    slots: Slots,
    hidden_states: Tensor,
    compute_logits: Callable[[Tensor], Tensor],
) -> dict[int, list[RowLogprobs]]:
    """The prompt positions of a batch whose request asked, and whose successor is a prompt token.

    Prompt tokens were not drawn, so no penalty or bias is applied to their logits.

    Args:
        batch: what was computed.
        slots: knows the prompts.
        hidden_states: [num_tokens, hidden_size] behind the last layer.
        compute_logits: [num_rows, hidden_size] to [num_rows, vocab_size].

    Returns: index in the batch -> consecutive positions, in parts.
    """
    found: dict[int, list[RowLogprobs]] = {}
    start = 0
    for index, slot in enumerate(batch.slots):
        num_tokens, first = batch.num_tokens[index], batch.num_computed[index]
        if slot in slots.prompts:
            successors = slots.prompts[slot][first + 1 : first + 1 + num_tokens]
            num_top = int(slots.sampling.num_prompt_logprobs[slot])
            rows = hidden_states[start : start + len(successors)]
            if len(successors):
                found[index] = _in_parts(rows, successors, num_top, compute_logits)
        start += num_tokens
    return found


def _in_parts(
    hidden_states: Tensor,
    successors: NDArray[np.int64],
    num_top: int,
    compute_logits: Callable[[Tensor], Tensor],
) -> list[RowLogprobs]:
    token_ids = upload(successors.copy(), hidden_states.device)
    parts = []
    for start in range(0, len(successors), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        logits = compute_logits(hidden_states[part])
        tensors: LogprobTensors = compute_logprobs(logits, token_ids[part], num_top)
        parts.append(RowLogprobs(tensors=tensors, num_top=[num_top] * len(logits)))
    return parts
