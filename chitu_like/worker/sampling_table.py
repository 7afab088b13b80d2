"""The sampling parameters of every slot as columns, so that a batch gathers them with one index."""

from __future__ import annotations

import numpy as np

from chitu_like.core.batch import SamplingRow

GREEDY_BELOW = 1e-5
"""Temperatures under this are greedy: the noise would be smaller than a logit's own rounding."""


class SamplingTable:
    """Columns over slots; meanings and bounds are those of SamplingRow.

    Attributes:
        is_greedy: the temperature is 0, or as good as.
        edits_logits: has a penalty, bias or banned tokens.
        truncates: top_k, top_p or min_p is set.
        logit_bias: of the slots that have any: (token ids, values).
        stop_ids: of the slots that ban any.
    """

    def __init__(self, max_reqs: int) -> None:
        self.seed = np.zeros(max_reqs, np.uint64)
        self.temperature = np.zeros(max_reqs, np.float32)
        self.top_p = np.ones(max_reqs, np.float32)
        self.top_k = np.zeros(max_reqs, np.int64)
        self.min_p = np.zeros(max_reqs, np.float32)
        self.repetition_penalty = np.ones(max_reqs, np.float32)
        self.presence_penalty = np.zeros(max_reqs, np.float32)
        self.frequency_penalty = np.zeros(max_reqs, np.float32)
        self.min_tokens = np.zeros(max_reqs, np.int64)
        self.num_logprobs = np.full(max_reqs, -1, np.int64)
        self.num_prompt_logprobs = np.full(max_reqs, -1, np.int64)
        self.is_greedy = np.ones(max_reqs, np.bool_)
        self.edits_logits = np.zeros(max_reqs, np.bool_)
        self.truncates = np.zeros(max_reqs, np.bool_)
        self.logit_bias: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.stop_ids: dict[int, np.ndarray] = {}

    def set(self, slot: int, row: SamplingRow) -> None:
        """Replace what the slot held."""
        self.seed[slot] = row.seed
        self.temperature[slot] = row.temperature
        self.top_p[slot] = row.top_p
        self.top_k[slot] = row.top_k
        self.min_p[slot] = row.min_p
        self.repetition_penalty[slot] = row.repetition_penalty
        self.presence_penalty[slot] = row.presence_penalty
        self.frequency_penalty[slot] = row.frequency_penalty
        self.num_logprobs[slot] = row.num_logprobs
        self.num_prompt_logprobs[slot] = row.num_prompt_logprobs
        self.min_tokens[slot] = row.min_tokens if row.stop_ids else 0
        self.is_greedy[slot] = row.temperature < GREEDY_BELOW
        self.truncates[slot] = row.top_k > 0 or row.top_p < 1.0 or row.min_p > 0.0
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
