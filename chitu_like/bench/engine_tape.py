"""A real instance served from this process, with everything it was asked and answered on a tape.

The tape says after which step each request entered, so the same steps can be simulated, whatever the
clock showed; and it has the seconds of every batch, to fit a cost model to.
"""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from chitu_like.cluster.cost_model import BatchShape, StepCost
from chitu_like.cluster.profile_records import HostCost
from chitu_like.cluster.step_fitting import Measured
from chitu_like.config.load import load_config
from chitu_like.core.batch import ScheduledBatch
from chitu_like.core.errors import CapacityError, ConfigError
from chitu_like.core.output import FinishReason, RequestDelta, StepOutput
from chitu_like.engine.engine import Engine
from chitu_like.engine.executor import Executor
from chitu_like.engine.messages import AddRequest
from chitu_like.instance import LoadedEngine, load_engine
from chitu_like.model_files import read_model_files
from chitu_like.rank import gather
from chitu_like.simulator.clock import VirtualClock
from chitu_like.simulator.instance import InstanceShape, SimulatedInstance
from chitu_like.simulator.recorder import FinishedRequest
from chitu_like.worker.crew import Crew

AWAKE_S = 0.002
"""An idle server is awake so long before an arrival: a timer may ring that late."""


WAITED_S = 2e-5
"""Who waits no longer for a batch finds it done, and nobody saw when that was."""
TICK_S = 1e-9
"""Between requests of one step: no two came at the same instant, and policies look at that."""


@dataclass
class Tape:
    """What an engine did.

    Attributes:
        max_in_flight: batches at a time; one is computed while it is submitted.
        entries: (steps taken in before it entered, request), in order.
        batches, outputs: of each step.
        spans_s: (submitted, collected) of each step, on the engine's clock.
        waits_s: of each step, how long the host waited for it in vain.
        finished: every answered request, its times since the start.
        elapsed_s: from what arrivals are counted from to the last answer.
    """

    max_in_flight: int
    entries: list[tuple[int, AddRequest]] = field(default_factory=list)
    batches: list[ScheduledBatch] = field(default_factory=list)
    outputs: list[StepOutput] = field(default_factory=list)
    spans_s: list[tuple[float, float]] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)
    finished: list[FinishedRequest] = field(default_factory=list)
    elapsed_s: float = 0.0

    def measured(self) -> list[Measured]:
        """Seconds of every batch whose start and end were seen.

        The end is where the host waited for it. The start is where it was submitted, or the end of the
        batch before.
        """
        found: list[Measured] = []
        before_s, before_is_seen = 0.0, True
        for batch, (start_s, end_s), wait_s in zip(
            self.batches, self.spans_s, self.waits_s, strict=True
        ):
            is_seen = self.max_in_flight == 1 or wait_s > WAITED_S
            if batch.num_reqs and is_seen and (before_is_seen or start_s >= before_s):
                seconds = end_s - max(start_s, before_s)
                found.append(Measured(shape=BatchShape.of(batch), seconds=seconds))
            before_s, before_is_seen = end_s, is_seen
        return found


class TapedExecutor:
    """An Executor that notes what passes through it."""

    def __init__(self, executor: Executor) -> None:
        """Begin a tape."""
        self.tape = Tape(max_in_flight=executor.max_in_flight)
        self.clock: Callable[[], float] = time.perf_counter
        self._executor = executor
        self._submitted_s: deque[float] = deque()

    @property
    def max_in_flight(self) -> int:
        """See Executor."""
        return self._executor.max_in_flight

    def submit(self, batch: ScheduledBatch) -> None:
        """See Executor."""
        self._submitted_s.append(self.clock())
        self.tape.batches.append(batch)
        self._executor.submit(batch)

    def wait(self, timeout_s: float) -> bool:
        """See Executor."""
        return self._executor.wait(timeout_s)

    def collect(self) -> StepOutput:
        """See Executor."""
        start_s = self.clock()
        output = self._executor.collect()
        end_s = self.clock()
        self.tape.outputs.append(output)
        self.tape.spans_s.append((self._submitted_s.popleft(), end_s))
        self.tape.waits_s.append(end_s - start_s)
        return output

    def shutdown(self) -> None:
        """See Executor."""
        self._executor.shutdown()


class _TapedCrew(Crew):
    """Ranks whose executor is taped.

    Attributes:
        taped: once it was made.
    """

    taped: TapedExecutor

    @classmethod
    def of(cls, crew: Crew) -> _TapedCrew:
        """The same ranks."""
        taped = cls.__new__(cls)
        vars(taped).update(vars(crew))
        return taped

    def executor(self, *, overlap: bool) -> Executor:
        """See Crew."""
        self.taped = TapedExecutor(super().executor(overlap=overlap))
        return self.taped


class TapedInstance:
    """A loaded instance of one process whose runs are taped.

    Args:
        overrides: `key=value` as for the service.
        cpu_clock: let seconds be those that this process computes, and idle time be computed away:
            on a machine that others use too they are what seconds are on a quiet one. For a process
            of one thread, so without infer.schedule_overlap.

    Raises: ConfigError where two threads would count twice.
    """

    def __init__(self, *overrides: str, cpu_clock: bool = False) -> None:
        """Load it."""
        config = load_config(overrides)
        if cpu_clock and config.infer.schedule_overlap:
            raise ConfigError(
                "seconds of the CPU are those of one thread: set infer.schedule_overlap=false"
            )
        files = read_model_files(config)
        crew = _TapedCrew.of(gather(config, files.spec, os.environ))
        self._loaded: LoadedEngine = load_engine(
            config, files, crew, shows_progress=False, bounds_queue=False
        )
        self._executor = crew.taped
        self._is_cpu_clock = cpu_clock
        self._clock = self._executor.clock = time.process_time if cpu_clock else time.perf_counter

    @property
    def engine(self) -> Engine:
        """The real one."""
        return self._loaded.engine

    def shape(self, stages: Sequence[StepCost], host: HostCost | None = None) -> InstanceShape:
        """The same instance for the simulator, with costs for its stages."""
        resolved, info = self._loaded.resolved, self.engine.info
        config = resolved.config
        return InstanceShape(
            stages=stages,
            num_blocks=info.num_blocks,
            block_size=info.block_size,
            max_reqs=info.max_reqs,
            max_seq_len=info.max_seq_len,
            max_num_batched_tokens=resolved.max_num_batched_tokens,
            prefill_chunk_size=resolved.prefill_chunk_size,
            policy=config.scheduler.type,
            overlap=config.infer.schedule_overlap,
            enable_prefix_caching=resolved.enable_prefix_caching,
            num_host_blocks=self._loaded.num_host_blocks,
            starvation_s=config.scheduler.starvation_s,
            host=host,
        )

    def serve(self, arrivals: Sequence[tuple[float, AddRequest]]) -> Tape:
        """Let requests come in real time, as `engine/endpoint.py: serve` takes them, to the end.

        Args:
            arrivals: (seconds after the start, request), in order; ids are their places.

        Raises: CapacityError where one is refused.
        """
        tape = self._executor.tape = Tape(max_in_flight=self._executor.max_in_flight)
        engine, coming = self.engine, deque(arrivals)
        first_token_s: dict[str, float] = {}
        num_tokens: Counter[str] = Counter()
        start_s = self._clock()
        while coming or engine.has_requests:
            while coming and coming[0][0] <= self._clock() - start_s:
                message = coming.popleft()[1]
                tape.entries.append((len(tape.outputs), message))
                engine.add(message)
            if not engine.has_requests:
                ahead_s = coming[0][0] - (self._clock() - start_s)
                time.sleep(0.0 if self._is_cpu_clock else max(0.0, ahead_s - AWAKE_S))
            elif engine.is_due(0.0):
                deltas = engine.take_in()
                now_s = self._clock() - start_s
                for delta in deltas:
                    first_token_s.setdefault(delta.request_id, now_s)
                    num_tokens[delta.request_id] += len(delta.token_ids)
                    if delta.finish_reason is not None:
                        arrival = arrivals[int(delta.request_id)]
                        tape.finished.append(
                            _finished(arrival, first_token_s, num_tokens, delta, now_s)
                        )
        tape.elapsed_s = self._clock() - start_s
        return tape

    def shutdown(self) -> None:
        """End it."""
        self.engine.shutdown()


def _finished(
    arrival: tuple[float, AddRequest],
    first_token_s: dict[str, float],
    num_tokens: Counter[str],
    delta: RequestDelta,
    now_s: float,
) -> FinishedRequest:
    if delta.finish_reason is FinishReason.ERROR:
        raise CapacityError(f"request {delta.request_id} of the tape was refused: {delta.error}")
    arrival_s, message = arrival
    return FinishedRequest(
        index=int(delta.request_id),
        arrival_s=arrival_s,
        first_token_s=first_token_s.pop(delta.request_id),
        finished_s=now_s,
        input_len=len(message.prompt_token_ids),
        output_len=num_tokens.pop(delta.request_id),
        num_cached_tokens=delta.num_cached_tokens,
    )


def replay(tape: Tape, shape: InstanceShape, *, with_its_tokens: bool) -> list[ScheduledBatch]:
    """Simulate step by step: each request enters after as many steps as it did on the tape.

    Args:
        tape: of a real run.
        shape: of the same instance.
        with_its_tokens: sample what the model sampled, rather than invent.

    Returns: the batches that the simulated instance scheduled.
    """
    batches: list[ScheduledBatch] = []

    def sample(batch: ScheduledBatch) -> list[int]:
        batches.append(batch)
        if with_its_tokens:
            return tape.outputs[batch.step_id].token_ids
        return list(range(sum(batch.samples)))

    clock = VirtualClock()
    instance = SimulatedInstance("replay", shape, clock, lambda deltas: None, sample=sample)
    engine, coming = instance.engine, deque(tape.entries)
    num_steps = 0
    while coming or engine.has_requests:
        while coming and coming[0][0] <= num_steps:
            clock.run(clock.now_s + TICK_S)
            engine.add(coming.popleft()[1])
        engine.is_due(0.0)
        due_s = instance.executor.due_s
        assert due_s is not None, "the tape goes on with nothing to do: it is another instance's"
        clock.run(max(due_s, clock.now_s))
        engine.take_in()
        num_steps += 1
    return batches
