"""The sampling parameters of every slot as columns, so that a batch gathers them with one index."""

from __future__ import annotations

import numpy as np

from chitu_like.core.batch import SamplingRow
from chitu_like.ops.draw import NUM_PARAMS, pack_params


class SamplingTable:
    """Columns over slots; meanings and bounds are those of SamplingRow.

    Attributes:
        draw_params: [max_reqs, NUM_PARAMS] int32, all that drawing from logits needs (ops/draw.py).
        edits_logits: has a penalty, bias or banned tokens.
        logit_bias: of the slots that have any: (token ids, values).
        stop_ids: of the slots that ban any.
    """

    def __init__(self, max_reqs: int) -> None:
        self.draw_params = np.zeros((max_reqs, NUM_PARAMS), np.int32)
        self.repetition_penalty = np.ones(max_reqs, np.float32)
        self.presence_penalty = np.zeros(max_reqs, np.float32)
        self.frequency_penalty = np.zeros(max_reqs, np.float32)
        self.min_tokens = np.zeros(max_reqs, np.int64)
        self.num_logprobs = np.full(max_reqs, -1, np.int64)
        self.num_prompt_logprobs = np.full(max_reqs, -1, np.int64)
        self.edits_logits = np.zeros(max_reqs, np.bool_)
        self.logit_bias: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.stop_ids: dict[int, np.ndarray] = {}

    def set(self, slot: int, row: SamplingRow) -> None:
        """Replace what the slot held."""
        self.draw_params[slot] = pack_params(
            seed=row.seed,
            temperature=row.temperature,
            top_k=row.top_k,
            top_p=row.top_p,
            min_p=row.min_p,
        )
        self.repetition_penalty[slot] = row.repetition_penalty
        self.presence_penalty[slot] = row.presence_penalty
        self.frequency_penalty[slot] = row.frequency_penalty
        self.num_logprobs[slot] = row.num_logprobs
        self.num_prompt_logprobs[slot] = row.num_prompt_logprobs
        self.min_tokens[slot] = row.min_tokens if row.stop_ids else 0
        self.logit_bias.pop(slot, None)
        self.stop_ids.pop(slot, None)
        if row.logit_bias:
            token_ids, values = zip(*row.logit_bias, strict=True)
            self.logit_bias[slot] = (np.array(token_ids, np.int64), np.array(values, np.float32))
        if row.stop_ids and row.min_tokens:
            self.stop_ids[slot] = np.array(row.stop_ids, np.int64)
        self.edits_logits[slot] = has_penalty(row) or slot in self.logit_bias or row.min_tokens > 0


def has_penalty(row: SamplingRow) -> bool:
    """Whether sampling looks at the tokens that came before."""
    return (
        row.repetition_penalty != 1.0 or row.presence_penalty != 0.0 or row.frequency_penalty != 0.0
    )
