"""The largest steps, made up: what a profile run measures."""

from __future__ import annotations

import msgspec

from chitu_like.core.batch import SamplingRow, ScheduledBatch, SlotRow

# All that sampling may be asked for: top_p sorts the vocabulary, penalties count tokens.
_DEMANDING = SamplingRow(
    seed=0,
    temperature=1.0,
    top_p=0.5,
    top_k=0,
    min_p=0.0,
    repetition_penalty=1.1,
    presence_penalty=0.0,
    frequency_penalty=0.0,
    logit_bias=[],
    min_tokens=0,
    stop_ids=[],
    num_logprobs=0,
    num_prompt_logprobs=-1,
)
_SIMPLE = msgspec.structs.replace(_DEMANDING, repetition_penalty=1.0, num_logprobs=-1)


def make_profile_batch(
    num_reqs: int, num_tokens: int, block_size: int, *, is_simple: bool = False
) -> ScheduledBatch:
    """`num_reqs` new prompts of `num_tokens` each, all sampled, in blocks 0 and following.

    Simple ones want neither penalties nor log-probabilities; see `Sampler.is_simple`.
    """
    num_blocks = -(-num_tokens // block_size)
    slots = list(range(num_reqs))
    rows = [
        SlotRow(
            slot=slot,
            prompt_len=num_tokens,
            block_ids=list(range(slot * num_blocks, (slot + 1) * num_blocks)),
            sampling=_SIMPLE if is_simple else _DEMANDING,
            history=[],
        )
        for slot in slots
    ]
    return ScheduledBatch(
        step_id=0,
        slots=slots,
        num_tokens=[num_tokens] * num_reqs,
        num_computed=[0] * num_reqs,
        samples=[True] * num_reqs,
        token_ids=[0] * (num_reqs * num_tokens),
        new_blocks=[[]] * num_reqs,
        rows=rows,
        swap_out=[],
        swap_in=[],
        num_decodes=0,
    )
