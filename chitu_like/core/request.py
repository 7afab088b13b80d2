"""A request and its states: the record that the scheduler owns and nobody else writes."""

from __future__ import annotations

from enum import Enum

from chitu_like.core.output import FinishReason
from chitu_like.core.sampling_params import SamplingParams


class RequestState(Enum):
    """Where a request stands. Only the scheduler moves it."""

    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    TRANSFERRING = "transferring"
    FINISHED = "finished"


class Request:
    """One prompt on its way to one completion.

    Three counters say how far it is: `num_computed` tokens have been handed to a batch and will be in
    the KV cache when that batch ends; `num_pending` output tokens were sampled by batches still in
    flight, so their values are unknown here; `num_in_flight` batches name it.

    Attributes:
        request_id: unique among open requests.
        prompt_token_ids: at least one.
        params: how to sample; n is 1 here (the caller expands it).
        eos_token_ids: the model's end-of-text tokens.
        max_output_tokens: params.max_tokens cut to what the context holds.
        seed: of the sampling noise, 0 <= seed < 2**64.
        arrival_s: when it came, seconds of the scheduler's clock.
        deadline_s: when its answer is worthless, same clock; inf where nobody said.
        slot: its row in the workers' mirror while it runs.
        num_blocks_sent: leading blocks of its table that the workers know of.
        num_cached_tokens: prompt tokens that the prefix cache spared.
        num_prompt_logprobs: prompt positions whose log-probabilities were handed out.
        num_passed: later requests admitted ahead of it because it did not fit.
        last_step_id: the newest batch that names it.
        steady_until: while num_computed is below this, its next step is one more decode for which
            nothing has to be decided: it holds the block, workers know its row, a token is to come.
        end_token_ids: whichever of these it samples ends it, once it has min_tokens.
        num_served_tokens: tokens computed for it, recomputed ones included.
        is_promoted: it was starving, so it goes before all others.
        start_pass: the stride policy's virtual time when it came.
        num_tokens_elsewhere: output tokens at most that another instance adds to max_output_tokens;
            above 0, it is handed off with its last token here (disagg).
    """

    __slots__ = (
        "arrival_s",
        "deadline_s",
        "end_token_ids",
        "eos_token_ids",
        "finish_reason",
        "first_scheduled_s",
        "first_token_s",
        "is_promoted",
        "last_scheduled_s",
        "last_step_id",
        "max_output_tokens",
        "num_blocks_sent",
        "num_cached_tokens",
        "num_computed",
        "num_in_flight",
        "num_passed",
        "num_pending",
        "num_prompt_logprobs",
        "num_served_tokens",
        "num_tokens_elsewhere",
        "output_token_ids",
        "params",
        "prompt_token_ids",
        "request_id",
        "seed",
        "slot",
        "start_pass",
        "state",
        "steady_until",
        "stop_token_id",
    )

    def __init__(
        self,
        *,
        request_id: str,
        prompt_token_ids: list[int],
        params: SamplingParams,
        max_output_tokens: int,
        seed: int = 0,
        eos_token_ids: frozenset[int] = frozenset(),
        arrival_s: float = 0.0,
        deadline_s: float = float("inf"),
    ) -> None:
        self.request_id = request_id
        self.prompt_token_ids = prompt_token_ids
        self.params = params
        self.eos_token_ids = eos_token_ids
        self.end_token_ids = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            self.end_token_ids |= eos_token_ids
        self.max_output_tokens = max_output_tokens
        self.seed = seed
        self.arrival_s = arrival_s
        self.deadline_s = deadline_s
        self.state = RequestState.WAITING
        self.output_token_ids: list[int] = []
        self.num_computed = 0
        self.num_pending = 0
        self.num_in_flight = 0
        self.num_cached_tokens = 0
        self.slot: int | None = None
        self.num_blocks_sent = 0
        self.num_passed = 0
        self.num_prompt_logprobs = 0
        self.num_served_tokens = 0
        self.num_tokens_elsewhere = 0
        self.is_promoted = False
        self.start_pass = 0.0
        self.first_scheduled_s: float | None = None
        self.last_scheduled_s = arrival_s
        self.last_step_id = -1
        self.steady_until = 0
        self.first_token_s: float | None = None
        self.finish_reason: FinishReason | None = None
        self.stop_token_id: int | None = None

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens the user sent."""
        return len(self.prompt_token_ids)

    @property
    def num_known_tokens(self) -> int:
        """Tokens whose ids are known here: prompt and collected output."""
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    @property
    def num_uncomputed(self) -> int:
        """Tokens still to be fed, those in flight included: 1 for a decode, more for a prefill."""
        num_known = len(self.prompt_token_ids) + len(self.output_token_ids)
        return num_known + self.num_pending - self.num_computed

    @property
    def needs_history(self) -> bool:
        """Whether workers must know its tokens: for penalties, or for prompt log-probabilities."""
        return self.params.needs_history or self.params.prompt_logprobs is not None

    @property
    def is_decoding(self) -> bool:
        """Whether only its newest token is missing from the KV cache."""
        return self.num_computed >= len(self.prompt_token_ids) and self.num_uncomputed == 1

    @property
    def is_finished(self) -> bool:
        """Whether its answer is complete; its blocks may still be held by a batch in flight."""
        return self.state is RequestState.FINISHED

    def known_tokens(self, start: int, stop: int) -> list[int]:
        """Known token ids of positions [start, stop); shorter where they are not known yet."""
        prompt_len = len(self.prompt_token_ids)
        if stop <= prompt_len:
            return self.prompt_token_ids[start:stop]
        if start >= prompt_len:
            return self.output_token_ids[start - prompt_len : stop - prompt_len]
        return self.prompt_token_ids[start:] + self.output_token_ids[: stop - prompt_len]
