"""One instance on a virtual clock: the engine, scheduler and block manager that serve, another executor.

Its turns are those of `engine/endpoint.py: serve`: between two steps it takes in what came; with one
stage it then waits for the oldest batch, with several it takes in newcomers while a stage has room.
"""

from __future__ import annotations

import functools
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from chitu_like.cluster.cost_model import StepCost
from chitu_like.cluster.profile_records import HostCost
from chitu_like.cluster.topology import Link
from chitu_like.core.batch import ScheduledBatch
from chitu_like.core.errors import ConfigError
from chitu_like.core.output import RequestDelta
from chitu_like.core.sampling_params import SamplingParams
from chitu_like.engine.engine import Engine
from chitu_like.engine.messages import AddRequest, EngineInfo
from chitu_like.kvcache.block_manager import BlockManager
from chitu_like.scheduler.limits import SchedulerLimits
from chitu_like.scheduler.mlfq import Quanta
from chitu_like.scheduler.policy import Ordering
from chitu_like.scheduler.scheduler import Scheduler
from chitu_like.simulator.clock import VirtualClock
from chitu_like.simulator.executor import SimulatedExecutor, StageTime
from chitu_like.simulator.recorder import Recorder
from chitu_like.simulator.workload import PlannedRequest, prompt_tokens

NUM_TOKEN_IDS = 2**62
"""Token ids of simulated prompts are names of blocks, and of these there are as many as one likes."""


@dataclass(frozen=True, kw_only=True)
class InstanceShape:
    """What one instance is and how it is set; names and defaults are those of the service's keys.

    Attributes:
        stages: cost of a batch on each pipeline stage, tp devices each.
        num_blocks: KV blocks, as many on every stage.
        block_size: tokens of one.
        devices_per_stage: tp.
        max_reqs: running at once.
        max_seq_len: tokens of one request.
        max_num_batched_tokens, prefill_chunk_size: of a step; None: 2048 and the same.
        policy: scheduler.type.
        overlap: schedule a step while the one before it is computed.
        enable_prefix_caching: share the blocks of equal prefixes.
        num_host_blocks: KV blocks that preempted requests may be swapped to; 0: they are recomputed.
        block_copy_s: seconds to copy one block to or from the host.
        starvation_s: without service, after which a request goes first.
        max_queued_requests, max_queued_tokens: what may wait here; None: as much as likes.
        host: what a step costs the engine's process; None: nothing.
        quanta: of the queues of the mlfq policy.
        links: between neighbouring stages; none: hidden states move in no time.
        activation_bytes: of a token between stages.
    """

    stages: Sequence[StepCost]
    num_blocks: int
    block_size: int = 16
    devices_per_stage: int = 1
    max_reqs: int = 256
    max_seq_len: int = 1 << 24
    max_num_batched_tokens: int = 2048
    prefill_chunk_size: int | None = None
    policy: str = "prefill_first"
    overlap: bool = True
    enable_prefix_caching: bool = True
    num_host_blocks: int = 0
    block_copy_s: float = 0.0
    starvation_s: float = 60.0
    max_queued_requests: int | None = None
    max_queued_tokens: int | None = None
    host: HostCost | None = None
    quanta: Quanta = field(default_factory=Quanta)
    links: Sequence[Link] = ()
    activation_bytes: float = 0.0

    def __post_init__(self) -> None:
        counts = ("num_blocks", "block_size", "devices_per_stage", "max_reqs", "max_seq_len")
        for name in (*counts, "max_num_batched_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: an instance needs 1 at least")
        if not self.stages:
            raise ConfigError("an instance has one stage at least")
        if len(self.links) not in (0, len(self.stages) - 1):
            raise ConfigError(
                f"{len(self.links)} links for {len(self.stages)} stages: give one between each two"
            )

    @property
    def num_devices(self) -> int:
        """GPUs of all stages."""
        return len(self.stages) * self.devices_per_stage

    @property
    def limits(self) -> SchedulerLimits:
        """What the scheduler is told."""
        size, queued, tokens = (
            self.prefill_chunk_size,
            self.max_queued_requests,
            self.max_queued_tokens,
        )
        return SchedulerLimits(
            max_reqs=self.max_reqs,
            max_seq_len=self.max_seq_len,
            max_num_batched_tokens=self.max_num_batched_tokens,
            prefill_chunk_size=self.max_num_batched_tokens if size is None else size,
            num_stages=len(self.stages),
            max_queued_requests=sys.maxsize if queued is None else queued,
            max_queued_tokens=sys.maxsize if tokens is None else tokens,
            starvation_s=self.starvation_s,
            quanta=self.quanta,
        )

    @property
    def info(self) -> EngineInfo:
        """What a front end is told."""
        return EngineInfo(
            max_seq_len=self.max_seq_len,
            max_reqs=self.max_reqs,
            num_blocks=self.num_blocks,
            block_size=self.block_size,
            vocab_size=NUM_TOKEN_IDS,
        )


class SimulatedInstance:
    """An engine that runs on a virtual clock.

    Args:
        name: in results, e.g. "instance0".
        shape: what it is.
        clock: of the simulation.
        on_deltas: told of the news of every step, as a front end is.
        recorder: told of busy stages and of the KV cache; None: nobody.
        sample: the token ids that a batch samples; None: numbers that no other step has.

    Attributes:
        engine, scheduler, blocks, executor: the real ones, and the simulated one.
    """

    def __init__(
        self,
        name: str,
        shape: InstanceShape,
        clock: VirtualClock,
        on_deltas: Callable[[list[RequestDelta]], None],
        *,
        recorder: Recorder | None = None,
        sample: Callable[[ScheduledBatch], list[int]] | None = None,
    ) -> None:
        """Start idle."""
        self.name = name
        self.shape = shape
        self._clock = clock
        self._on_deltas = on_deltas
        self._recorder = recorder
        self._inbox: deque[AddRequest | str] = deque()  # a text is the id of one to be aborted
        self._num_coming = 0  # requests in it
        self._is_waiting = False  # for the oldest batch, deaf to newcomers
        self._is_woken = False
        self._turn_number = 0
        self._num_preemptions = 0
        self._levels = [f"{name}.{level}" for level in ("kv", "running", "waiting")]
        self._is_up = True
        self.blocks = BlockManager(
            shape.num_blocks,
            shape.block_size,
            enable_prefix_caching=shape.enable_prefix_caching,
            num_host_blocks=shape.num_host_blocks,
        )
        self.scheduler = Scheduler(shape.limits, self.blocks, Ordering(shape.policy))
        self.executor = SimulatedExecutor(
            clock,
            shape.stages,
            max_in_flight=len(shape.stages) + shape.overlap,
            host=shape.host,
            links=shape.links,
            activation_bytes=shape.activation_bytes,
            block_copy_s=shape.block_copy_s,
            sample=sample,
            on_computed=None if recorder is None else self._computed,
        )
        self.engine = Engine(self.scheduler, self.executor, shape.info, seed=0, clock=clock)
        if recorder is not None:  # who never computes counts among the nodes too
            for stage in range(len(shape.stages)):
                self._computed(StageTime(stage=stage, start_s=clock.now_s, end_s=clock.now_s))

    @property
    def is_up(self) -> bool:
        """Whether it has not failed."""
        return self._is_up

    def add(self, request: AddRequest) -> None:
        """Hand over a request; the engine sees it between two steps."""
        self._hear(request)

    def abort(self, request_id: str) -> None:
        """Let it forget one; likewise."""
        self._hear(request_id)

    def fail(self) -> None:
        """Stop for good, in the middle of whatever it does; its requests get no more news."""
        self._is_up = False
        self._inbox.clear()
        self.engine.shutdown()
        if self._recorder is not None:
            for level in self._levels:
                self._recorder.level(level, 0.0)

    def wake(self) -> None:
        """Let it look at what there is to do, as soon as all that comes at this instant has come."""
        if self._is_up and not (self._is_waiting or self._is_woken):
            self._is_woken = True
            self._clock.after(0.0, self._turn)

    def _hear(self, message: AddRequest | str) -> None:
        assert self._is_up, f"{self.name} has failed"
        self._inbox.append(message)
        if isinstance(message, AddRequest):
            self._num_coming += 1
            self._report_waiting()
        self.wake()

    def _turn(self) -> None:
        """What an engine does between two steps, up to where it waits or sleeps."""
        self._is_woken = False
        self._turn_number += 1  # what an earlier turn has set is void
        while self._is_up:  # who hears the news may end it
            self._take_messages()
            is_due = self.engine.has_requests and self.engine.is_due(0.0)
            self._report()
            if not self.engine.has_requests:
                return
            due_s = self.executor.due_s
            if due_s is not None and due_s > self._clock.now_s:
                self._is_waiting = is_due
                self._clock.at(due_s, functools.partial(self._come_again, self._turn_number))
                return
            if not self._take_in() and self.executor.due_s is None:
                return  # it has requests, but none of them has anything to do here

    def _come_again(self, turn_number: int) -> None:
        """The oldest batch is through; where there was room, newcomers may have set a later turn."""
        if self._is_up and turn_number == self._turn_number:
            if self._is_waiting:
                self._take_in()
                self._is_waiting = False
            self._turn()

    def _take_in(self) -> bool:
        """Take in the oldest batch and pass its news on; False where there was nothing."""
        is_computed = self.executor.due_s is not None
        deltas = self.engine.take_in()
        self._on_deltas(deltas)
        return is_computed or bool(deltas)

    def _take_messages(self) -> None:
        self._num_coming = 0
        while self._inbox:
            message = self._inbox.popleft()
            if isinstance(message, str):
                self.engine.abort(message)
            else:
                self.engine.add(message)

    def _computed(self, time: StageTime) -> None:
        assert self._recorder is not None
        name = self.name if len(self.shape.stages) == 1 else f"{self.name}.stage{time.stage}"
        self._recorder.busy(name, time.start_s, time.end_s)

    def _report(self) -> None:
        """Say how it stands once it has scheduled what it can: so it stays up to its next turn."""
        scheduler, recorder = self.scheduler, self._recorder
        if recorder is None:
            return
        recorder.level(self._levels[0], self.blocks.usage)
        recorder.level(self._levels[1], scheduler.num_running)
        self._report_waiting()
        if scheduler.num_preemptions > self._num_preemptions:
            recorder.count("preemptions", scheduler.num_preemptions - self._num_preemptions)
            self._num_preemptions = scheduler.num_preemptions

    def _report_waiting(self) -> None:
        """Say how many wait, with those that the engine has not seen yet."""
        if self._recorder is not None:
            waiting = self.scheduler.num_waiting + self._num_coming
            self._recorder.level(self._levels[2], waiting)


def message_of(request: PlannedRequest, request_id: str) -> AddRequest:
    """What a front end would send for a planned request: so many tokens in, so many out."""
    return AddRequest(request_id, prompt_tokens(request), _params(request.output_len))


@functools.lru_cache(maxsize=1 << 14)
def _params(output_len: int) -> SamplingParams:
    """Exactly so many tokens; shared, since checking them again costs more than a step's part."""
    return SamplingParams(max_tokens=output_len, ignore_eos=True, seed=0)
