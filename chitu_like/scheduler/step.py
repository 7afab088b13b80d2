"""One step while it is put together, and how it becomes a ScheduledBatch."""

from __future__ import annotations

import msgspec

from chitu_like.core.batch import SAMPLED_LAST, SamplingRow, ScheduledBatch, SlotRow
from chitu_like.core.request import Request
from chitu_like.kvcache.block_manager import BlockManager

MAX_HISTORY_TOKENS = 1 << 22
"""Tokens of histories that travel with the rows of one batch: 20 MB. Requests that share a long prompt
could all join in the same step, and each brings its whole history where it has a penalty."""


class Step(msgspec.Struct):
    """A batch while requests are chosen for it.

    Attributes:
        is_tight: not even the decodes fit the budget. Then the policy's order alone decides who is
            served, and requests are admitted to wait their turn in it.
        decodes_left: requests whose decode was not chosen yet; each keeps a token of the budget,
            unless the step is tight.
        token_budget: tokens that still fit.
        prefill_budget: prompt tokens that still fit.
        chunks: request -> its next tokens in this step.
        prefills: those that are no decodes: of several tokens, or of the prompt.
        cut: those of the chunks behind which more prompt is left.
        num_prefill_tokens: of the chunks of requests that do not decode.
        swap_out, swap_in: as in ScheduledBatch.
        is_short_of_blocks: someone was preempted for lack of blocks, so nobody is admitted.
        num_history_tokens: that the rows of the chunks bring along.
    """

    is_tight: bool
    decodes_left: set[Request]
    token_budget: int
    prefill_budget: int
    chunks: dict[Request, int] = {}
    prefills: set[Request] = set()
    cut: set[Request] = set()
    num_prefill_tokens: int = 0
    swap_out: list[tuple[int, int]] = []
    swap_in: list[tuple[int, int]] = []
    is_short_of_blocks: bool = False
    num_history_tokens: int = 0

    def num_tokens_for(self, request: Request) -> int:
        """Tokens the budgets leave for a request: the decodes to come keep one each."""
        if not self._has_room_for_history(request):
            return 0
        if request.num_uncomputed == 1:
            return min(1, self.token_budget)
        room = min(self.prefill_budget, self.token_budget - len(self.decodes_left))
        return max(0, min(request.num_uncomputed, room))

    def _has_room_for_history(self, request: Request) -> bool:
        """Whether its row may go with this batch; the first with a history always may."""
        num_tokens = _num_history_tokens(request)
        sum_tokens = self.num_history_tokens + num_tokens
        return not num_tokens or not self.num_history_tokens or sum_tokens <= MAX_HISTORY_TOKENS

    def add(self, request: Request, num_tokens: int) -> None:
        """Put the request's next `num_tokens` tokens into the batch."""
        num_uncomputed = request.num_uncomputed
        self.num_history_tokens += _num_history_tokens(request)
        if num_uncomputed > 1:
            self.prefill_budget -= num_tokens
            self.num_prefill_tokens += num_tokens
        if num_tokens > 1 or request.num_computed < request.num_prompt_tokens:
            self.prefills.add(request)
        if num_uncomputed > num_tokens:
            self.cut.add(request)
        self.add_decode(request, num_tokens)

    def add_decode(self, request: Request, num_tokens: int = 1) -> None:
        """The part of `add` that a decode needs whose row the workers know."""
        self.chunks[request] = num_tokens
        self.decodes_left.discard(request)
        self.token_budget -= num_tokens

    def ordered_requests(self) -> list[Request]:
        """The requests as they stand in the batch: the decodes first."""
        if not self.prefills:
            return list(self.chunks)
        return sorted(self.chunks, key=self.prefills.__contains__)


def _num_history_tokens(request: Request) -> int:
    """Tokens that its row would bring along, where it has to be sent."""
    is_known = request.slot is not None and request.num_blocks_sent
    return 0 if is_known or not request.needs_history else request.num_known_tokens


def build_batch(
    step_id: int, step: Step, requests: list[Request], blocks: BlockManager
) -> ScheduledBatch:
    """The batch of a step, whose requests are in order. Their counters say what was before it."""
    num_tokens = [step.chunks[request] for request in requests]
    return ScheduledBatch(
        step_id=step_id,
        slots=[slot_of(request) for request in requests],
        num_tokens=num_tokens,
        num_computed=[request.num_computed for request in requests],
        samples=[request not in step.cut for request in requests],
        token_ids=_input_tokens(requests, num_tokens),
        new_blocks=[
            [] if request.num_computed < request.steady_until else _new_blocks(request, blocks)
            for request in requests
        ],
        rows=[
            _row(request, blocks.block_ids(request))
            for request in requests
            if not request.num_blocks_sent
        ],
        swap_out=step.swap_out,
        swap_in=step.swap_in,
        num_decodes=len(requests) - len(step.prefills),
    )


def _new_blocks(request: Request, blocks: BlockManager) -> list[int]:
    """What the workers have not heard of; nothing where the whole row goes along."""
    sent = request.num_blocks_sent
    return blocks.block_ids(request)[sent:] if sent else []


def slot_of(request: Request) -> int:
    """The slot of a request that runs."""
    if request.slot is None:
        raise RuntimeError(f"{request.request_id} is scheduled without a slot")
    return request.slot


def _input_tokens(requests: list[Request], num_tokens: list[int]) -> list[int]:
    """The ids of their next tokens; the newest of a request may be known to the device alone."""
    token_ids: list[int] = []
    for request, count in zip(requests, num_tokens, strict=True):
        if request.num_pending and count == 1:
            token_ids.append(SAMPLED_LAST)
        else:
            start = request.num_computed
            known = request.known_tokens(start, start + count)
            token_ids += known + [SAMPLED_LAST] * (count - len(known))
    return token_ids


def _sampling_row(request: Request) -> SamplingRow:
    params = request.params
    eos_ids = () if params.ignore_eos else request.eos_token_ids
    return SamplingRow(
        seed=request.seed,
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        logit_bias=list(params.logit_bias.items()),
        min_tokens=params.min_tokens,
        stop_ids=sorted({*params.stop_token_ids, *eos_ids}) if params.min_tokens else [],
        num_logprobs=-1 if params.logprobs is None else params.logprobs,
        num_prompt_logprobs=-1 if params.prompt_logprobs is None else params.prompt_logprobs,
    )


def _row(request: Request, block_ids: list[int]) -> SlotRow:
    return SlotRow(
        slot=slot_of(request),
        prompt_len=request.num_prompt_tokens,
        block_ids=list(block_ids),
        sampling=_sampling_row(request),
        history=request.known_tokens(0, request.num_known_tokens) if request.needs_history else [],
    )
