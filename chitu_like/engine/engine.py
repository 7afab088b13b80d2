"""One instance's loop: schedule, execute, update."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Collection

from chitu_like.core.batch import ScheduledBatch
from chitu_like.core.errors import ChituError, RequestError
from chitu_like.core.output import FinishReason, RequestDelta
from chitu_like.core.request import Request
from chitu_like.engine.executor import Executor
from chitu_like.engine.messages import AddRequest, EngineInfo, EngineStats
from chitu_like.scheduler.prefilled import Prefilled
from chitu_like.scheduler.scheduler import Scheduler


class Engine:
    """Requests in, deltas out, one step at a time. No sockets, no threads, no tensors.

    Example::

        engine.add(AddRequest("a", [1, 2, 3], SamplingParams(max_tokens=8)))
        while engine.has_requests:
            for delta in engine.step():
                print(delta.request_id, delta.token_ids)

    Args:
        scheduler: decides; owned by the engine from now on.
        executor: computes.
        info: what the instance can hold; requests are checked against it.
        seed: of the seeds drawn for requests that bring none.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor,
        info: EngineInfo,
        *,
        seed: int,
        clock: Callable[[], float],
    ) -> None:
        """Start idle."""
        self.info = info
        self._scheduler = scheduler
        self._executor = executor
        self._clock = clock
        self._seeds = random.Random(seed)
        self._in_flight: deque[ScheduledBatch] = deque()
        self._refused: list[RequestDelta] = []
        self._num_prompt_tokens = 0
        self._num_output_tokens = 0

    @property
    def has_requests(self) -> bool:
        """Whether `step` has anything to do."""
        return self._scheduler.has_requests or bool(self._refused) or bool(self._in_flight)

    def add(self, message: AddRequest) -> None:
        """Take a request. One that cannot run is answered by the next `step`, not raised."""
        self._add(message, is_prefill=False)

    def add_prefill(self, message: AddRequest) -> None:
        """Take a request that another instance decodes: `take_prefilled` has it after a token."""
        self._add(message, is_prefill=True)

    def take_prefilled(self) -> list[Prefilled]:
        """Those that came through their prompts since the last call; their blocks are kept."""
        scheduler, now_s = self._scheduler, self._clock()
        return [
            Prefilled.of(request, scheduler.prompt_blocks(request), now_s)
            for request in scheduler.take_handed_off()
        ]

    def let_go(self, request_id: str) -> None:
        """Free the blocks of a prefilled request; unknown ids are ignored."""
        self._scheduler.let_go(request_id)

    def _add(self, message: AddRequest, *, is_prefill: bool) -> None:
        try:
            request = self._request(message)
            if is_prefill:
                request.num_tokens_elsewhere = request.max_output_tokens - 1
                request.max_output_tokens = 1
            self._scheduler.add(request)
        except ChituError as error:
            delta = RequestDelta(
                message.request_id, [], finish_reason=FinishReason.ERROR, error=str(error)
            )
            self._refused.append(delta)
        else:
            self._num_prompt_tokens += len(message.prompt_token_ids)

    def abort(self, request_id: str) -> None:
        """Forget a request; unknown ids are ignored, since it may just have finished."""
        self._scheduler.abort(request_id)

    def step(self) -> list[RequestDelta]:
        """Keep the executor full, then `take_in` its oldest batch."""
        self._fill()
        return self.take_in()

    def take_in(self) -> list[RequestDelta]:
        """Wait for the oldest batch, if there is one, and take it in.

        Returns: news of the requests it touched, and of those refused since the last step.

        Raises:
            Exception: whatever broke the executor; the engine cannot go on.
        """
        deltas, self._refused = self._refused, []
        if self._in_flight:
            output = self._executor.collect()
            deltas += self._scheduler.update(self._in_flight.popleft(), output, self._clock())
        self._num_output_tokens += sum(len(delta.token_ids) for delta in deltas)
        return deltas

    def is_due(self, timeout_s: float) -> bool:
        """Keep the executor full, and say whether to `take_in` now.

        False: the executor has room, and its oldest batch was not through within `timeout_s`. A
        request that comes now can be started beside it: take in what came, then ask again.
        """
        self._fill()
        has_room = 0 < len(self._in_flight) < self._executor.max_in_flight
        return not has_room or bool(self._refused) or self._executor.wait(timeout_s)

    def stats(self) -> EngineStats:
        """Gauges and totals now."""
        scheduler = self._scheduler
        return EngineStats(
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting,
            kv_usage=scheduler.blocks.usage,
            num_steps=scheduler.num_steps,
            num_preemptions=scheduler.num_preemptions,
            num_prompt_tokens=self._num_prompt_tokens,
            num_output_tokens=self._num_output_tokens,
            prefix_cache_queries=scheduler.blocks.prefix_queries,
            prefix_cache_hits=scheduler.blocks.prefix_hits,
        )

    def shutdown(self) -> None:
        """Stop the executor; open requests are dropped."""
        self._executor.shutdown()

    def _fill(self) -> None:
        """Submit batches while the executor has room and something can be computed."""
        while len(self._in_flight) < self._executor.max_in_flight:
            batch = self._scheduler.schedule(self._clock())
            if batch is None:
                return
            self._executor.submit(batch)
            self._in_flight.append(batch)

    def _request(self, message: AddRequest) -> Request:
        """The scheduler's record of a message, checked against what the instance can hold."""
        prompt, params, info = message.prompt_token_ids, message.params, self.info
        if not prompt:
            raise RequestError("the prompt is empty: send at least one token", param="prompt")
        _check_ids(prompt, info.vocab_size, "prompt")
        _check_ids(params.stop_token_ids, info.vocab_size, "stop_token_ids")
        _check_ids(params.logit_bias, info.vocab_size, "logit_bias")
        if params.n != 1:
            raise RequestError(f"n={params.n}: the engine takes one completion a request", "n")
        room = info.max_seq_len - len(prompt)
        if room < 1:
            raise RequestError(
                f"the prompt has {len(prompt)} tokens: with one token of output it exceeds "
                f"the context of {info.max_seq_len} (infer.max_seq_len)",
                param="prompt",
            )
        seed = params.seed if params.seed is not None else self._seeds.getrandbits(64)
        now_s = self._clock()
        timeout_s = float("inf") if message.timeout_s is None else message.timeout_s
        return Request(
            request_id=message.request_id,
            prompt_token_ids=prompt,
            params=params,
            max_output_tokens=room if params.max_tokens is None else min(params.max_tokens, room),
            seed=seed & (2**64 - 1),
            eos_token_ids=frozenset(message.eos_token_ids),
            arrival_s=now_s,
            deadline_s=now_s + timeout_s,
        )


def _check_ids(token_ids: Collection[int], vocab_size: int, param: str) -> None:
    """Raise RequestError for a token that the model does not have: workers index with these."""
    if token_ids and (min(token_ids) < 0 or max(token_ids) >= vocab_size):
        bad = next(token_id for token_id in token_ids if not 0 <= token_id < vocab_size)
        raise RequestError(
            f"{param}: token id {bad} is outside the vocabulary of {vocab_size}", param=param
        )
