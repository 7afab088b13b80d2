"""What the engine's loop takes for a step beside computing it: a real engine over a device of no time."""

from __future__ import annotations

import statistics
import time
from collections import deque

import numpy as np

from chitu_like.cluster.nnls import nnls
from chitu_like.cluster.profile_records import HostCost
from chitu_like.core.batch import ScheduledBatch
from chitu_like.core.output import StepOutput
from chitu_like.core.sampling_params import SamplingParams
from chitu_like.engine.engine import Engine
from chitu_like.engine.messages import AddRequest, EngineInfo
from chitu_like.kvcache.block_manager import BlockManager
from chitu_like.scheduler.limits import SchedulerLimits
from chitu_like.scheduler.policy import Ordering
from chitu_like.scheduler.scheduler import Scheduler

PROMPT_LEN = 64
NUM_STEPS = 60
WARM_UP = 10


class InstantExecutor:
    """Answers every batch at once; see Executor.

    Attributes:
        max_in_flight: as in service with overlap.
    """

    max_in_flight = 2

    def __init__(self) -> None:
        self._waiting: deque[ScheduledBatch] = deque()

    def submit(self, batch: ScheduledBatch) -> None:
        """See Executor."""
        self._waiting.append(batch)

    def wait(self, timeout_s: float) -> bool:
        """See Executor."""
        return True

    def collect(self) -> StepOutput:
        """See Executor: every token is 1."""
        batch = self._waiting.popleft()
        count = sum(batch.samples)
        return StepOutput(batch.step_id, [1] * count, [], [])

    def shutdown(self) -> None:
        """See Executor."""
        self._waiting.clear()


def measure_host_cost(max_reqs: int, *, block_size: int) -> HostCost:
    """Time decode steps of few and of many requests, and draw a line through them.

    Args:
        max_reqs: most requests.
        block_size: tokens of a KV block.
    """
    counts = sorted({1, max(1, max_reqs // 4), max(1, max_reqs // 2), max_reqs})
    seconds = np.array([_decode_step_s(count, block_size) for count in counts])
    a = np.array([[1.0, count] for count in counts]) / seconds[:, None]
    step_s, request_s = nnls(a, np.ones(len(counts)))
    return HostCost(step_s=float(step_s), request_s=float(request_s))


def _decode_step_s(num_reqs: int, block_size: int) -> float:
    """Median seconds of a step in which so many requests decode."""
    max_seq_len = PROMPT_LEN + NUM_STEPS + 8
    num_blocks = num_reqs * -(-max_seq_len // block_size)
    budget = num_reqs * (PROMPT_LEN + 1)
    limits = SchedulerLimits(
        max_reqs=num_reqs,
        max_seq_len=max_seq_len,
        max_num_batched_tokens=budget,
        prefill_chunk_size=budget,
    )
    info = EngineInfo(
        max_seq_len=max_seq_len,
        max_reqs=num_reqs,
        num_blocks=num_blocks,
        block_size=block_size,
        vocab_size=num_reqs + 2,
    )
    scheduler = Scheduler(limits, BlockManager(num_blocks, block_size), Ordering("prefill_first"))
    engine = Engine(scheduler, InstantExecutor(), info, seed=0, clock=time.monotonic)
    params = SamplingParams(temperature=0.0, max_tokens=NUM_STEPS, ignore_eos=True)
    for index in range(num_reqs):
        engine.add(AddRequest(str(index), [index + 1] * PROMPT_LEN, params))
    laps: list[float] = []
    while engine.has_requests:
        start_s = time.perf_counter()
        engine.step()
        laps.append(time.perf_counter() - start_s)
    return statistics.median(laps[WARM_UP:-WARM_UP])
