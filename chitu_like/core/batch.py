"""One step as plain numbers: everything a rank needs to compute it, and nothing else.

A batch names a request by its *slot*, a row of the mirror that every rank keeps. A request that is
new or resumed brings its whole row; afterwards only what changed travels. So workers own no request
state, and a step's message stays small.
"""

from __future__ import annotations

import msgspec

SAMPLED_LAST = -1
"""Stands for an input token that only the device knows: what this slot sampled last."""


class SamplingRow(msgspec.Struct, frozen=True, array_like=True):
    """A slot's sampling parameters, ready for the device. Meanings as in SamplingParams.

    Attributes:
        seed: of the noise; drawn by the engine where the user gave none. 0 <= seed < 2**64.
        stop_ids: all tokens that may not be drawn while output position < min_tokens.
        num_logprobs: -1 for none.
    """

    seed: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: list[tuple[int, float]]
    min_tokens: int
    stop_ids: list[int]
    num_logprobs: int
    num_prompt_logprobs: int


class SlotRow(msgspec.Struct, frozen=True, array_like=True):
    """The whole row of a slot whose request is new or resumed.

    Attributes:
        slot: 0 <= slot < max_reqs.
        prompt_len: prompt tokens; output position = position + 1 - prompt_len.
        block_ids: its block table before this step's new blocks.
        sampling: how its tokens are drawn.
        history: prompt and output tokens so far where penalties or prompt logprobs look at them,
            else empty.
    """

    slot: int
    prompt_len: int
    block_ids: list[int]
    sampling: SamplingRow
    history: list[int]


class ScheduledBatch(msgspec.Struct, frozen=True, array_like=True):
    """What every rank computes in one step. Immutable; lists are per request, in the same order.

    Decodes (one query token, which stands behind the prompt) come before prefill chunks. A chunk may
    have one token too: other kernels compute it, so that its result does not hang on how the prompt
    was cut.

    Attributes:
        step_id: increases by one with each batch.
        slots: [num_reqs] the requests' rows.
        num_tokens: [num_reqs] query tokens of each, at least 1.
        num_computed: [num_reqs] tokens of each already in the KV cache: the position of its first
            query token.
        samples: [num_reqs] whether its last query token's logits are sampled.
        token_ids: [sum(num_tokens)] input tokens in order; SAMPLED_LAST for the slot's last sample.
        new_blocks: [num_reqs] blocks appended to its table for this step.
        rows: rows of new or resumed requests; they replace what the slot held.
        swap_out: (device block, host block) copies made before anything else of this step.
        swap_in: (host block, device block) copies made after the swap_outs, before the forward.
        num_decodes: requests in front that decode.
    """

    step_id: int
    slots: list[int]
    num_tokens: list[int]
    num_computed: list[int]
    samples: list[bool]
    token_ids: list[int]
    new_blocks: list[list[int]]
    rows: list[SlotRow]
    swap_out: list[tuple[int, int]]
    swap_in: list[tuple[int, int]]
    num_decodes: int

    @property
    def num_reqs(self) -> int:
        """Requests in the batch; 0 where it only moves blocks."""
        return len(self.slots)
