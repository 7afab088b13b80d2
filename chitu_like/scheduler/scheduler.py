"""Continuous batching: which tokens of which requests are computed in the next step.

A step carries decodes and prefill chunks together (Orca, OSDI'22; SARATHI, arXiv:2308.16369): every
running request that can go on gets one token, what is left of the token budget goes to prompts. A
request needs a slot and, at admission, KV blocks for all tokens known by then; where a decode finds
no block, the last request in policy order is preempted, by swapping to the host or by recomputing, and
nobody behind it is admitted before it is back.

`schedule` may be called again before the output of the batch before is known. Then a request's next
input token is SAMPLED_LAST, known only to the device. Because every stage computes the batches in
order, a block that is freed here may be given away at once: the batch that still reads it runs first.

With pipeline stages several batches are computed at a time: `micro_batch.py` says who may be in the next.

Where prefill and decode are apart (DistServe, OSDI'24), a request of a prefill instance is *handed off*
after its first token and keeps its blocks until they were pulled, so that a slow decode side is felt
by prefill admission. A decode instance sets blocks aside for it, and lets it *land* when they are filled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from chitu_like.core.batch import ScheduledBatch
from chitu_like.core.errors import CapacityError
from chitu_like.core.output import (
    FinishReason,
    RequestDelta,
    RequestTimes,
    StepOutput,
    TokenLogprobs,
)
from chitu_like.core.request import Request, RequestState
from chitu_like.kvcache.block_manager import BlockManager
from chitu_like.scheduler.limits import SchedulerLimits
from chitu_like.scheduler.micro_batch import prefill_share, ready_requests
from chitu_like.scheduler.policy import Ordering, Situation, stride_pass
from chitu_like.scheduler.step import Step, build_batch, slot_of
from chitu_like.scheduler.waiting_queue import WaitingQueue

MAX_PASSED = 16
"""Requests admitted ahead of one that does not fit; then nobody passes until it does."""
LEAD_FADE = 0.9
"""How much of the prefill lead a step leaves to the next: about ten steps are remembered."""


class Scheduler:
    """Owns every request of one instance from `add` to its last delta.

    Args:
        limits: what the instance can hold.
        blocks: its KV blocks; nobody else may change them.
        ordering: who goes first.

    Raises:
        CapacityError: from `add`, where a request can never run or the queue is full.
    """

    def __init__(self, limits: SchedulerLimits, blocks: BlockManager, ordering: Ordering) -> None:
        """Start with nothing to do."""
        self.limits = limits
        self.blocks = blocks
        self.num_preemptions = 0
        self._ordering = ordering
        self._waiting = WaitingQueue(ordering)
        self._running: list[Request] = []
        self._is_sorted = True
        self._open: dict[str, Request] = {}
        self._crossing: dict[str, Request] = {}
        self._handed_off: list[Request] = []
        self._free_slots = deque(range(limits.max_reqs))
        self._in_flight: dict[int, list[Request]] = {}
        self._num_steps = 0
        self._prefill_lead = 0.0
        self._start_pass: float | None = None

    # Requests come and go

    @property
    def num_running(self) -> int:
        """Requests that hold a slot."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Requests that wait for one, preempted ones included."""
        return len(self._waiting)

    @property
    def num_preempted(self) -> int:
        """Requests that lost their places and wait to go on."""
        return self._waiting.num_preempted

    @property
    def num_landed_blocks(self) -> int:
        """Blocks of requests that came prefilled and wait for a slot."""
        if not self._waiting.num_landed:
            return 0
        return sum(len(self.blocks.block_ids(r)) for r in self._waiting if _is_crossing(r))

    @property
    def num_crossing(self) -> int:
        """Requests whose blocks are held for another instance, or for what it is to send."""
        return len(self._crossing)

    @property
    def num_steps(self) -> int:
        """Batches made so far."""
        return self._num_steps

    @property
    def has_requests(self) -> bool:
        """Whether any request is open or a finished one still has batches in flight."""
        return bool(self._open)

    def open_requests(self) -> list[str]:
        """Ids of all requests that have not had their last delta."""
        return [r.request_id for r in self._open.values() if not r.is_finished]

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises:
            CapacityError: it can never run here, its id is open already, or the queue is full.
        """
        self.limits.check(
            request,
            self.blocks,
            num_open=len(self._waiting) + len(self._running),
            num_queued_tokens=self._waiting.num_new_tokens,
        )
        self._check_is_new(request)
        request.start_pass = self._least_pass()
        self._open[request.request_id] = request
        self._waiting.add(request)

    def _check_is_new(self, request: Request) -> None:
        if request.request_id in self._open or request.request_id in self._crossing:
            raise CapacityError(f"request id {request.request_id!r} is open already")

    def _least_pass(self) -> float:
        """Where a newcomer starts in the stride policy's virtual time: beside who is furthest back.

        Kept until someone is served or ends, since a burst of newcomers changes nothing about it.
        """
        if self._start_pass is None:
            passes = [stride_pass(r) for r in (*self._running, *self._waiting)]
            self._start_pass = min(passes, default=0.0)
        return self._start_pass

    def abort(self, request_id: str) -> bool:
        """Forget a request: its blocks are free when the batches naming it are collected.

        Returns: whether it was open.
        """
        request = self._open.get(request_id)
        if request is None or request.is_finished:
            return False
        self._finish(request, FinishReason.ABORT)
        return True

    # Requests cross from one instance to another

    def take_handed_off(self) -> list[Request]:
        """Those whose prompts are through and that another instance is to decode, once each.

        They are not open any more; their blocks are kept until `let_go`.
        """
        handed_off, self._handed_off = self._handed_off, []
        return handed_off

    def prompt_blocks(self, request: Request) -> list[int]:
        """The blocks that hold the keys and values of a crossing request's prompt, in order."""
        num_blocks = self.blocks.blocks_for(request.num_prompt_tokens)
        return self.blocks.block_ids(request)[:num_blocks]

    def reserve(self, request: Request) -> range | None:
        """Set blocks aside for a request that another instance prefilled.

        Args:
            request: as Prefilled.to_request made it.

        Returns: which of its prompt's blocks have to be filled (the others are cached here), or
            None where there is no room now.

        Raises:
            CapacityError: it can never run here, or its id is open already.
        """
        self.limits.check_size(request, self.blocks)
        earlier = self._open.get(request.request_id)
        if earlier is not None and earlier.is_finished:
            return None  # aborted here, and still part of a batch in flight
        self._check_is_new(request)
        if not self._fits(request):
            self.blocks.free(request)  # the names of its blocks
            return None
        num_cached = self.blocks.attach_prefix(request)
        if not self.blocks.extend(request, request.num_known_tokens):
            raise RuntimeError(f"{request.request_id} was accepted without room for its tokens")
        request.state = RequestState.TRANSFERRING
        self._crossing[request.request_id] = request
        num_blocks = self.blocks.blocks_for(request.num_prompt_tokens)
        return range(num_cached // self.blocks.block_size, num_blocks)

    def keep(self, request_id: str) -> bool:
        """Decode a request here after all that was to be handed off, with the blocks it has.

        Returns: False where it lacks one more block now.

        Raises:
            CapacityError: its answer is too long for this instance; it still crosses.
        """
        request = self._crossing[request_id]
        request.max_output_tokens += request.num_tokens_elsewhere
        request.num_tokens_elsewhere = 0
        self.limits.check_size(request, self.blocks)
        if not self.blocks.extend(request, request.num_known_tokens):
            return False
        self.land(request_id)
        return True

    def land(self, request_id: str) -> None:
        """The reserved blocks of a request are filled: it runs as soon as there is a slot."""
        request = self._crossing.pop(request_id)
        request.start_pass = self._least_pass()
        self._open[request_id] = request
        self._waiting.add(request)

    def let_go(self, request_id: str) -> bool:
        """Free the blocks of a request that was handed off, or for which blocks were set aside.

        Nobody may read or fill them from here on.

        Returns: whether there was such a request.
        """
        request = self._crossing.pop(request_id, None)
        if request is None:
            return False
        self._handed_off = [r for r in self._handed_off if r is not request]
        self.blocks.free(request)
        return True

    # One step

    def schedule(self, now_s: float) -> ScheduledBatch | None:
        """Choose the next step's tokens.

        Args:
            now_s: seconds of any clock that never goes back.

        Returns: the batch, or None where nothing can be computed now (all wait for a batch in
            flight, or there is no request).
        """
        if not self._open:
            return None
        self._start_pass = None
        situation = Situation(
            now_s=now_s,
            count_cached=self.blocks.count_cached,
            prefill_lead=self._prefill_lead,
            quanta=self.limits.quanta,
        )
        if self._ordering.can_starve:
            self._promote_starved(now_s)
        self._sort_running(situation)
        if self._free_slots or self._ordering.is_preemptive:
            self._waiting.sort(situation)  # else nobody joins: who loses a slot lacked blocks
        ready = ready_requests(
            self._running, step_id=self._num_steps, num_stages=self.limits.num_stages
        )
        step = self._open_step(ready)
        if self._ordering.is_preemptive:
            self._preempt_outranked(step, situation)
        self._schedule_running(ready, step)
        if not step.is_short_of_blocks:
            self._admit_waiting(step)
        if not step.chunks and not step.swap_out and not step.swap_in:
            return None
        return self._build_batch(step, now_s)

    def update(self, batch: ScheduledBatch, output: StepOutput, now_s: float) -> list[RequestDelta]:
        """Take in what a batch computed. Batches must come in the order they were scheduled.

        Returns: one delta for each request with news; aborted ones have none.

        Raises:
            RuntimeError: the output is that of another batch.
        """
        if output.step_id != batch.step_id:
            raise RuntimeError(
                f"batch {batch.step_id} came with the output of batch {output.step_id}"
            )
        deltas: list[RequestDelta] = []
        prompt_logprobs = dict(output.prompt_logprobs)
        logprobs = iter(output.logprobs)
        sampled = iter(output.token_ids)
        requests = self._in_flight.pop(batch.step_id)
        for index, (request, samples) in enumerate(zip(requests, batch.samples, strict=True)):
            token_ids = [next(sampled)] if samples else []
            entry = next(logprobs, None) if samples else None
            request.num_in_flight -= 1
            request.num_pending -= samples
            if request.finish_reason is None and (samples or index in prompt_logprobs):
                if samples:
                    self._append(request, token_ids[0], now_s)
                delta = RequestDelta(
                    request.request_id,
                    token_ids,
                    [] if entry is None else [entry],
                    num_cached_tokens=request.num_cached_tokens,
                )
                if entries := prompt_logprobs.get(index):
                    delta.prompt_logprobs.extend(
                        _new_entries(request, batch.num_computed[index], entries)
                    )
                if request.finish_reason is not None:
                    delta = _last_delta(delta, request, now_s)
                if samples or delta.prompt_logprobs:
                    deltas.append(delta)
            if request.finish_reason is not None and not request.num_in_flight:
                self._release(request)
        return deltas

    # Parts of schedule

    def _open_step(self, ready: list[Request]) -> Step:
        """An empty step whose budgets keep room for the decodes that are ready."""
        decodes = {r for r in ready if r.num_computed < r.steady_until or r.num_uncomputed == 1}
        limits = self.limits
        budget = limits.max_num_batched_tokens
        prefill_budget = limits.prefill_chunk_size
        if limits.num_stages > 1:
            share = prefill_share(self._running, self._num_arriving(), limits.num_stages)
            prefill_budget = min(prefill_budget, share)
        is_tight = len(decodes) >= budget
        return Step(
            is_tight=is_tight,
            decodes_left=set() if is_tight else decodes,
            token_budget=budget,
            prefill_budget=prefill_budget,
        )

    def _num_arriving(self) -> int:
        """Tokens of the waiting requests for which there seem to be slots and blocks."""
        next_ones = self._waiting.first(len(self._free_slots))
        room = self.blocks.num_free * self.blocks.block_size
        return min(room, sum(request.num_uncomputed for request in next_ones))

    def _preempt_outranked(self, step: Step, situation: Situation) -> None:
        """Let waiting requests take the places of running ones that their first key outranks."""
        for request in self._waiting.first(self.limits.max_reqs):  # more could not run at once
            if not _can_admit_now(request):
                continue
            victims: list[Request] = []
            while not self._has_room(request, victims):
                if len(victims) == len(self._running):
                    return
                victim = self._running[-1 - len(victims)]
                if not self._ordering.outranks(request, victim, situation):
                    return  # it would not fit beside the others, so nobody leaves
                victims.append(victim)
            for victim in victims:
                self._preempt(victim, step)

    def _schedule_running(self, ready: list[Request], step: Step) -> None:
        for request in ready:
            if request.num_computed < request.steady_until and step.token_budget:
                step.add_decode(request)
                continue
            if request.state is not RequestState.RUNNING:
                continue  # preempted meanwhile
            num_tokens = step.num_tokens_for(request)
            if num_tokens and self._make_room(request, request.num_computed + num_tokens, step):
                self._choose(request, num_tokens, step)

    def _make_room(self, request: Request, num_tokens: int, step: Step) -> bool:
        """Blocks for the request's first `num_tokens` tokens, preempting from the end of the order.

        Terminates: each round preempts one running request, at last this one itself.
        """
        while not self.blocks.extend(request, num_tokens):
            victim = next(r for r in reversed(self._running) if r not in step.chunks)
            self._preempt(victim, step)
            step.is_short_of_blocks = True
            if victim is request:
                return False
        return True

    def _admit_waiting(self, step: Step) -> None:
        if not self._free_slots:
            return
        passed: list[Request] = []
        is_closed = False  # to all but those that hold their blocks already
        for request in list(self._waiting):
            if not self._free_slots or (is_closed and not self._waiting.num_landed):
                break
            if is_closed and not _is_crossing(request):
                continue
            if not _can_admit_now(request):
                is_closed = True
                continue
            if not step.num_tokens_for(request) and not step.is_tight:
                break
            if not self._has_room(request):
                passed.append(request)
                is_closed = (
                    request.state is RequestState.PREEMPTED
                    or request.num_passed >= MAX_PASSED
                    or len(passed) > MAX_PASSED
                )
                continue
            self._place(request, step)
            if num_tokens := step.num_tokens_for(request):
                self._choose(request, num_tokens, step)
            for waiting in passed:
                waiting.num_passed += 1

    def _choose(self, request: Request, num_tokens: int, step: Step) -> None:
        """Put the request's next tokens into the step.

        Blocks that they fill are shared from here on, with later requests of the same step too: a
        layer stores the keys and values of the whole batch before it attends.
        """
        step.add(request, num_tokens)
        self.blocks.name_full_blocks(request, request.num_computed + num_tokens)

    def _has_room(self, request: Request, leaving: Sequence[Request] = ()) -> bool:
        """Whether a slot and blocks for all its known tokens are free once `leaving` have left."""
        if not (self._free_slots or leaving):
            return False
        return _is_crossing(request) or self._fits(request, leaving)

    def _fits(self, request: Request, leaving: Sequence[Request] = ()) -> bool:
        """Whether blocks for all its known tokens are free once `leaving` have left.

        While others run, one block in a hundred stays free for their next tokens: admitting into
        the last blocks would preempt someone a step later.
        """
        reserve = 1 + self.blocks.num_blocks // 100 if len(self._running) > len(leaving) else 0
        if num_host := self.blocks.num_host_blocks_of(request):
            needed = num_host + 1
        elif _takes_shared_blocks(request):
            needed = self.blocks.num_to_admit(request)
        else:
            needed = self.blocks.blocks_for(request.num_known_tokens)
        needed = min(needed, self.blocks.num_blocks)
        num_free = self.blocks.num_free + sum(len(self.blocks.block_ids(r)) for r in leaving)
        return needed + reserve <= num_free

    def _place(self, request: Request, step: Step) -> None:
        """Give a waiting request a slot and its blocks."""
        self._waiting.remove(request)
        if self.blocks.num_host_blocks_of(request):
            step.swap_in += self.blocks.swap_in(request)
        elif _is_crossing(request):
            pass  # its blocks were filled by another instance
        elif _takes_shared_blocks(request):
            request.num_computed = self.blocks.attach_prefix(request)
        else:
            request.num_computed = 0
        if not self.blocks.extend(request, request.num_known_tokens):
            raise RuntimeError(f"{request.request_id} was admitted without room for its tokens")
        if request.state is RequestState.WAITING:
            request.num_cached_tokens = request.num_computed
        request.state = RequestState.RUNNING
        request.slot = self._free_slots.popleft()
        request.num_blocks_sent = 0
        self._running.append(request)
        self._is_sorted = False

    def _preempt(self, request: Request, step: Step) -> None:
        """Take a running request's blocks; it waits again, its tokens kept on the host if possible."""
        step.decodes_left.discard(request)
        # Some tokens of its full blocks may be known only since its last batch was collected.
        self.blocks.name_full_blocks(request, request.num_computed)
        copies = self.blocks.swap_out(request)
        if copies is None:
            self.blocks.free(request)
            request.num_computed = 0
        else:
            step.swap_out += copies
        self.num_preemptions += 1
        self._running.remove(request)
        self._free_slot(request)
        request.state = RequestState.PREEMPTED
        request.steady_until = 0
        self._waiting.add(request)

    def _build_batch(self, step: Step, now_s: float) -> ScheduledBatch:
        """The batch of a step, decodes first; every counter moves on as if it were computed."""
        requests = step.ordered_requests()
        batch = build_batch(self._num_steps, step, requests, self.blocks)
        num_prefill, num_all = step.num_prefill_tokens, len(batch.token_ids)
        self._prefill_lead = self._prefill_lead * LEAD_FADE + 2 * num_prefill - num_all
        for request, num_tokens, samples in zip(
            requests, batch.num_tokens, batch.samples, strict=True
        ):
            is_steady = request.num_computed < request.steady_until
            if not (is_steady or request.is_decoding):
                self._is_sorted = False
            request.num_computed += num_tokens
            request.num_pending += samples
            request.num_in_flight += 1
            request.num_served_tokens += num_tokens
            request.last_scheduled_s = now_s
            request.last_step_id = batch.step_id
            if not is_steady:
                self._settle(request, now_s)
        self._in_flight[batch.step_id] = requests
        self._num_steps += 1
        return batch

    def _settle(self, request: Request, now_s: float) -> None:
        """Note what a batch told the workers about a request, and how long it may go on decoding."""
        num_blocks = len(self.blocks.block_ids(request))
        request.num_blocks_sent = num_blocks
        if request.first_scheduled_s is None:
            request.first_scheduled_s = now_s
        if request.is_decoding:
            last = request.num_prompt_tokens + request.max_output_tokens - 1  # never computed
            request.steady_until = min(num_blocks * self.blocks.block_size, last)

    # Parts of update

    def _append(self, request: Request, token_id: int, now_s: float) -> None:
        """One more output token, and whether it was the last."""
        request.output_token_ids.append(token_id)
        if request.first_token_s is None:
            request.first_token_s = now_s
        num_tokens, params = len(request.output_token_ids), request.params
        if token_id in request.end_token_ids and num_tokens >= params.min_tokens:
            if token_id in params.stop_token_ids:
                request.stop_token_id = token_id
            self._finish(request, FinishReason.STOP)
        elif num_tokens >= request.max_output_tokens:
            if not request.num_tokens_elsewhere:
                self._finish(request, FinishReason.LENGTH)
            elif request.state is RequestState.RUNNING:
                self._hand_off(request)
            else:  # preempted since, its blocks are gone: it comes through here again, for one more
                request.max_output_tokens += 1
                request.num_tokens_elsewhere -= 1

    def _hand_off(self, request: Request) -> None:
        """Its part here is done; its blocks stay. No batch in flight names it: a length is foreseen."""
        assert not request.num_in_flight, f"{request.request_id} is in flight after its last token"
        self._running.remove(request)
        self._start_pass = None
        self._free_slot(request)
        request.state = RequestState.TRANSFERRING
        del self._open[request.request_id]
        self._crossing[request.request_id] = request
        self._handed_off.append(request)

    def _finish(self, request: Request, reason: FinishReason) -> None:
        """The answer is complete; what it holds goes when no batch in flight names it."""
        if request.state is RequestState.RUNNING:
            self.blocks.name_full_blocks(request, request.num_computed)
            self._running.remove(request)
        else:
            self._waiting.remove(request)
        self._start_pass = None
        request.state = RequestState.FINISHED
        request.finish_reason = reason
        if not request.num_in_flight:
            self._release(request)

    def _release(self, request: Request) -> None:
        self.blocks.free(request)
        if request.slot is not None:
            self._free_slot(request)
        self._open.pop(request.request_id, None)

    # Small parts

    def _promote_starved(self, now_s: float) -> None:
        """Whoever got nothing for too long goes first until it is done.

        For good: a promotion that ended with the first token would let two starving requests
        preempt each other for ever.
        """
        latest_s = now_s - self.limits.starvation_s
        for requests in (self._waiting, self._running):
            for request in [r for r in requests if r.last_scheduled_s < latest_s]:
                if not request.is_promoted:
                    request.is_promoted = True
                    self._is_sorted = self._waiting.is_sorted = False

    def _sort_running(self, situation: Situation) -> None:
        """Policy order; one that no decode changes is kept until someone joins or starts decoding."""
        if not (self._is_sorted and self._ordering.is_settled):
            self._running.sort(key=lambda request: self._ordering.rank(request, situation))
            self._is_sorted = True

    def _free_slot(self, request: Request) -> None:
        self._free_slots.append(slot_of(request))
        request.slot = None


def _takes_shared_blocks(request: Request) -> bool:
    """Whether a cached prefix spares it work: not where every prompt position must be computed."""
    return request.params.prompt_logprobs is None


def _is_crossing(request: Request) -> bool:
    """Whether it holds its blocks although it does not run."""
    return request.state is RequestState.TRANSFERRING


def _can_admit_now(request: Request) -> bool:
    """Whether all its tokens are known: a preempted request waits until its last batch has come."""
    return request.num_in_flight == 0


def _new_entries(
    request: Request, num_computed: int, entries: list[TokenLogprobs]
) -> list[TokenLogprobs]:
    """Those of a chunk's prompt logprobs that no delta had: a recomputed prompt has some again."""
    new = entries[max(0, request.num_prompt_logprobs - num_computed) :]
    request.num_prompt_logprobs += len(new)
    return new


def _last_delta(delta: RequestDelta, request: Request, now_s: float) -> RequestDelta:
    """The delta with how and when the request ended."""
    scheduled_s = (
        request.arrival_s if request.first_scheduled_s is None else request.first_scheduled_s
    )
    token_s = now_s if request.first_token_s is None else request.first_token_s
    return RequestDelta(
        request_id=delta.request_id,
        token_ids=delta.token_ids,
        logprobs=delta.logprobs,
        prompt_logprobs=delta.prompt_logprobs,
        finish_reason=request.finish_reason,
        stop_token_id=request.stop_token_id,
        num_cached_tokens=delta.num_cached_tokens,
        times=RequestTimes(scheduled_s - request.arrival_s, token_s - scheduled_s, now_s - token_s),
    )
