"""An executor that computes nothing: it asks a cost model how long a batch would take.

Stages work like those of a pipeline of ranks: each computes the batches in order, one at a time, while
the others compute other batches. The host is a stage of its own in front of them, so what it needs for
a step is hidden behind the devices as far as the batches in flight allow.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from chitu_like.cluster.cost_model import BatchShape, StepCost
from chitu_like.cluster.profile_records import HostCost
from chitu_like.cluster.topology import Link
from chitu_like.core.batch import SAMPLED_LAST, ScheduledBatch
from chitu_like.core.errors import PeerError
from chitu_like.core.output import StepOutput

MAX_BATCH_TOKENS = 1 << 24
"""Above what any step samples: invented token ids of two steps never meet."""


class StageTime(msgspec.Struct, frozen=True, kw_only=True):
    """When a stage computed a batch."""

    stage: int
    start_s: float
    end_s: float


class SimulatedExecutor:
    """The Executor protocol on a virtual clock.

    Args:
        clock: what time it is.
        stages: cost of a batch on each pipeline stage.
        max_in_flight: batches submitted and not collected: one a stage, one more with overlap.
        host: what a step costs the engine's process; None: nothing.
        links: between neighbouring stages, each with one batch's bytes at a time; none: hidden states
            move in no time.
        activation_bytes: of a token between stages.
        block_copy_s: to copy a KV block to or from the host, on each stage at once.
        sample: the token ids that a batch samples; None: numbers that no other step has.
        on_computed: told of each stage's time when a batch is collected.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        stages: Sequence[StepCost],
        *,
        max_in_flight: int,
        host: HostCost | None = None,
        links: Sequence[Link] = (),
        activation_bytes: float = 0.0,
        block_copy_s: float = 0.0,
        sample: Callable[[ScheduledBatch], list[int]] | None = None,
        on_computed: Callable[[StageTime], None] | None = None,
    ) -> None:
        """Start idle."""
        assert len(links) in (0, len(stages) - 1), "one link between each two stages"
        self._clock = clock
        self._stages = list(stages)
        self._max_in_flight = max_in_flight
        self._host = host
        self._links = list(links)
        self._activation_bytes = activation_bytes
        self._block_copy_s = block_copy_s
        self._sample = sample or invented_tokens
        self._on_computed = on_computed
        self._host_free_s = 0.0
        self._stage_free_s = [0.0] * len(self._stages)
        self._link_free_s = [0.0] * len(self._links)
        self._last_ends_s: deque[float] = deque(maxlen=len(self._stages))
        self._in_flight: deque[tuple[ScheduledBatch, float, list[StageTime]]] = deque()
        self._is_shut_down = False

    @property
    def max_in_flight(self) -> int:
        """See Executor."""
        return self._max_in_flight

    @property
    def due_s(self) -> float | None:
        """When the oldest batch in flight can be collected; None without one."""
        return self._in_flight[0][1] if self._in_flight else None

    def submit(self, batch: ScheduledBatch) -> None:
        """See Executor: when it will be through is known at once."""
        if self._is_shut_down:
            raise PeerError("the simulated instance has failed")
        assert len(self._in_flight) < self._max_in_flight, "more batches than max_in_flight"
        host_s = self._host.seconds(batch.num_reqs) if self._host else 0.0
        self._host_free_s = max(self._clock(), self._host_free_s) + host_s
        times = self._pass_stages(batch, self._host_free_s)
        end_s = times[-1].end_s
        self._last_ends_s.append(end_s)
        self._in_flight.append((batch, end_s, times))

    def wait(self, timeout_s: float) -> bool:
        """See Executor. Nothing waits here: who runs the clock asks `due_s` when to come again."""
        return (
            len(self._stages) == 1 or not self._in_flight or self._in_flight[0][1] <= self._clock()
        )

    def collect(self) -> StepOutput:
        """See Executor. Must not be called before `due_s`."""
        if not self._in_flight:
            raise PeerError("nothing was submitted, or the simulated instance has failed")
        batch, due_s, times = self._in_flight.popleft()
        assert due_s <= self._clock(), f"collected {due_s - self._clock()} s early"
        if self._on_computed is not None:
            for time in times:
                self._on_computed(time)
        return StepOutput(batch.step_id, self._sample(batch))

    def shutdown(self) -> None:
        """See Executor."""
        self._is_shut_down = True
        self._in_flight.clear()

    def _pass_stages(self, batch: ScheduledBatch, ready_s: float) -> list[StageTime]:
        """Book the batch on every stage, one after the other."""
        num_copies = len(batch.swap_out) + len(batch.swap_in)
        if len(self._last_ends_s) == len(self._stages) and _needs_last_sample(batch):
            ready_s = max(ready_s, self._last_ends_s[0])  # the last stage sends tokens to the first
        shape = BatchShape.of(batch)
        times: list[StageTime] = []
        for index, stage in enumerate(self._stages):
            start_s = max(ready_s, self._stage_free_s[index])
            end_s = start_s + num_copies * self._block_copy_s
            if batch.num_reqs:
                end_s += stage.seconds(shape)
            self._stage_free_s[index] = end_s
            times.append(StageTime(stage=index, start_s=start_s, end_s=end_s))
            ready_s = end_s
            if index < len(self._links):
                ready_s = self._cross(index, batch, ready_s)
        return times

    def _cross(self, index: int, batch: ScheduledBatch, ready_s: float) -> float:
        """When hidden states are on the next stage; the next batch's follow their last byte."""
        link, num_bytes = self._links[index], self._activation_bytes * sum(batch.num_tokens)
        start_s = max(ready_s, self._link_free_s[index])
        self._link_free_s[index] = start_s + num_bytes / link.bandwidth
        return start_s + link.seconds(num_bytes)


def invented_tokens(batch: ScheduledBatch) -> list[int]:
    """As many token ids as the batch samples, which no other step and no prompt has."""
    first = -2 - MAX_BATCH_TOKENS * batch.step_id
    return list(range(first, first - sum(batch.samples), -1))


def _needs_last_sample(batch: ScheduledBatch) -> bool:
    """Whether an input token is one that the host did not know when it sent the batch."""
    return SAMPLED_LAST in batch.token_ids[: batch.num_decodes]
