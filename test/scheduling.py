"""Helpers that the scheduler's and the engine's tests share."""

from __future__ import annotations

from dataclasses import dataclass, field

from fake_executor import VOCAB_SIZE, FakeExecutor

from chitu_like.core.output import FinishReason, TokenLogprobs
from chitu_like.core.request import Request
from chitu_like.core.sampling_params import SamplingParams
from chitu_like.engine.engine import Engine
from chitu_like.engine.messages import AddRequest, EngineInfo
from chitu_like.kvcache.block_manager import BlockManager
from chitu_like.scheduler.limits import SchedulerLimits
from chitu_like.scheduler.mlfq import Quanta
from chitu_like.scheduler.policy import Ordering
from chitu_like.scheduler.scheduler import Scheduler


@dataclass
class Rig:
    """An engine over a fake executor, on a clock that the test turns."""

    engine: Engine
    scheduler: Scheduler
    blocks: BlockManager
    executor: FakeExecutor
    clock: list[float]
    tokens: dict[str, list[int]] = field(default_factory=dict)
    ends: dict[str, list[FinishReason]] = field(default_factory=dict)
    errors: dict[str, str | None] = field(default_factory=dict)
    prompt_logprobs: dict[str, list[TokenLogprobs]] = field(default_factory=dict)

    def add(
        self,
        request_id: str,
        prompt: list[int],
        *,
        timeout_s: float | None = None,
        eos: list[int] | None = None,
        **params: object,
    ) -> None:
        values = {"max_tokens": 4, "temperature": 0.0, **params}
        sampling = SamplingParams(**values)  # type: ignore[arg-type]
        self.engine.add(AddRequest(request_id, prompt, sampling, eos or [], timeout_s))

    def step(self) -> None:
        self.step_without_clock()
        self.clock[0] += 1.0

    def step_without_clock(self) -> None:
        """For executors that turn the clock themselves."""
        for delta in self.engine.step():
            self.tokens.setdefault(delta.request_id, []).extend(delta.token_ids)
            self.prompt_logprobs.setdefault(delta.request_id, []).extend(delta.prompt_logprobs)
            if delta.finish_reason is not None:
                self.ends.setdefault(delta.request_id, []).append(delta.finish_reason)
                self.errors[delta.request_id] = delta.error
        self.blocks.check_integrity()

    def run(self, max_steps: int = 2000) -> None:
        for _ in range(max_steps):
            if not self.engine.has_requests:
                return
            self.step()
        raise AssertionError(f"not done after {max_steps} steps: {self.scheduler.open_requests()}")


def make_rig(
    *,
    policy: str = "prefill_first",
    num_blocks: int = 64,
    block_size: int = 4,
    num_host_blocks: int = 0,
    max_in_flight: int = 1,
    prefix_caching: bool = True,
    max_reqs: int = 8,
    max_seq_len: int = 64,
    budget: int = 64,
    chunk: int = 32,
    starvation_s: float = 1e9,
    max_queued_requests: int = 4096,
    max_queued_tokens: int = 2**24,
    num_stages: int = 1,
    quanta: Quanta | None = None,
) -> Rig:
    limits = SchedulerLimits(
        max_reqs=max_reqs,
        max_seq_len=max_seq_len,
        max_num_batched_tokens=budget,
        prefill_chunk_size=chunk,
        num_stages=num_stages,
        starvation_s=starvation_s,
        max_queued_requests=max_queued_requests,
        max_queued_tokens=max_queued_tokens,
        quanta=quanta or Quanta(),
    )
    blocks = BlockManager(
        num_blocks,
        block_size,
        enable_prefix_caching=prefix_caching,
        num_host_blocks=num_host_blocks,
    )
    scheduler = Scheduler(limits, blocks, Ordering(policy))
    executor = FakeExecutor(
        num_blocks=num_blocks,
        block_size=block_size,
        num_host_blocks=num_host_blocks,
        max_in_flight=max_in_flight,
        num_stages=num_stages,
    )
    info = EngineInfo(max_seq_len, max_reqs, num_blocks, block_size, VOCAB_SIZE)
    clock = [0.0]
    engine = Engine(scheduler, executor, info, seed=0, clock=lambda: clock[0])
    return Rig(engine, scheduler, blocks, executor, clock)


def make_request(request_id: str, prompt: list[int], **params: object) -> Request:
    return Request(
        request_id=request_id,
        prompt_token_ids=prompt,
        params=SamplingParams(**params),  # type: ignore[arg-type]
        max_output_tokens=16,
    )
