"""The leader's executor: batches go out in order, outputs come back in order, and losses are named."""

from __future__ import annotations

import re

import pytest
from tiny_model import TinyModel, sampling_row, tiny_runner
from torch import Tensor

from chitu_like.attention.base import ForwardBatch
from chitu_like.core.batch import SAMPLED_LAST, ScheduledBatch, SlotRow
from chitu_like.core.errors import PeerError
from chitu_like.core.output import StepOutput
from chitu_like.distributed.parallel_context import ParallelContext
from chitu_like.worker.executor import LocalExecutor
from chitu_like.worker.losses import Losses
from chitu_like.worker.messages import Execute, Executed, Failed, FromWorker, Stop, ToWorker
from chitu_like.worker.model_runner import ModelRunner
from chitu_like.worker.pipeline import Stage
from chitu_like.worker.torchrun_executor import TorchrunExecutor


@pytest.fixture(autouse=True)
def _nobody_is_lost_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is lost here is lost before anything fails."""
    monkeypatch.setattr("chitu_like.worker.losses.CAUSE_TIMEOUT_S", 0.01)


class FakeChannel:
    def __init__(self, *answers: FromWorker) -> None:
        self.sent: list[ToWorker] = []
        self.answers = list(answers)
        self.is_closed = False
        self.breaks = False

    def send(self, message: ToWorker) -> None:
        if self.breaks:
            raise PeerError("rank 1 of the instance is lost: connection closed")
        self.sent.append(message)

    def receive(self, timeout_s: float | None = None) -> tuple[int, FromWorker]:
        if not self.answers:
            raise TimeoutError
        return 1, self.answers.pop(0)

    def stop(self, message: ToWorker, timeout_s: float) -> None:
        self.send(message)
        self.is_closed = True

    def close(self) -> None:
        self.is_closed = True


class Own:
    """The leader's LocalRank."""

    def __init__(self, runner: ModelRunner) -> None:
        self.runner = runner
        self.has_left = False

    def leave(self) -> None:
        self.has_left = True


class FirstStage(Stage):
    """Sends to nobody."""

    def send(self, hidden_states: Tensor) -> None:
        pass


def executor_of(
    runner: ModelRunner, *answers: FromWorker, overlap: bool = True
) -> tuple[TorchrunExecutor, FakeChannel, Losses, Own]:
    channel, losses, own = FakeChannel(*answers), Losses([0, 1], grace_s=60.0), Own(runner)
    losses.channel = channel  # type: ignore[assignment]
    executor = TorchrunExecutor(own, channel, losses, overlap=overlap)  # type: ignore[arg-type]
    return executor, channel, losses, own


def first_stage() -> ModelRunner:
    parallel = ParallelContext.single()
    parallel = ParallelContext(pp_rank=0, pp_size=2, tp=parallel.tp, layers=range(2))
    plain = tiny_runner(parallel=parallel)
    runner = ModelRunner(plain.options, TinyModel(), plain._backend, FirstStage())
    runner.allocate(80)
    return runner


def batches(count: int) -> list[ScheduledBatch]:
    row = SlotRow(0, 3, list(range(16)), sampling_row(), [])
    first = ScheduledBatch(0, [0], [3], [0], [True], [5, 6, 7], [[]], [row], [], [], 0)
    rest = [
        ScheduledBatch(i, [0], [1], [2 + i], [True], [SAMPLED_LAST], [[]], [], [], [], 1)
        for i in range(1, count)
    ]
    return [first, *rest]


@pytest.mark.parametrize("overlap", [False, True])
def test_every_batch_goes_to_the_workers_and_gives_the_tokens_of_one_rank(overlap: bool) -> None:
    plain = LocalExecutor(tiny_runner(), max_in_flight=1)
    executor, channel, _, own = executor_of(tiny_runner(), overlap=overlap)
    assert executor.max_in_flight == 1 + overlap
    for batch in batches(6):
        plain.submit(batch)
        executor.submit(batch)
        assert executor.collect() == plain.collect()
    executor.shutdown()
    executor.shutdown()
    assert channel.sent == [*(Execute(batch) for batch in batches(6)), Stop()]
    assert channel.is_closed
    assert own.has_left


@pytest.mark.parametrize("overlap", [False, True])
def test_the_output_is_that_of_the_last_stage(overlap: bool) -> None:
    outputs = [StepOutput(i, [10 + i]) for i in range(3)]
    executor, *_ = executor_of(first_stage(), *map(Executed, outputs), overlap=overlap)
    assert executor.max_in_flight == 2 + overlap
    for batch in batches(2):
        executor.submit(batch)
    assert [executor.collect(), executor.collect()] == outputs[:2]
    executor.shutdown()


def test_only_a_pipeline_is_asked_whether_its_batch_is_through() -> None:
    """One stage is not: nothing could start before its batch ends."""
    outputs = [StepOutput(i, [10 + i]) for i in range(2)]
    executor, channel, *_ = executor_of(first_stage())
    for batch in batches(2):
        executor.submit(batch)
    assert not executor.wait(0.0)
    channel.answers += map(Executed, outputs)
    assert executor.wait(0.0)
    assert executor.wait(0.0)  # asking twice loses nothing
    assert [executor.collect(), executor.collect()] == outputs
    executor.shutdown()
    alone, *_ = executor_of(tiny_runner())
    alone.submit(batches(1)[0])
    assert alone.wait(0.0)
    alone.shutdown()


def test_what_is_in_flight_is_computed_by_all_before_they_stop() -> None:
    executor, channel, *_ = executor_of(tiny_runner())
    executor.submit(batches(1)[0])
    executor.shutdown()
    assert channel.sent == [Execute(batches(1)[0]), Stop()]
    with pytest.raises(PeerError):
        executor.submit(batches(1)[0])


def test_a_lost_rank_is_named_with_the_oldest_step_that_is_not_through() -> None:
    class Closed(TinyModel):
        def forward(self, batch: ForwardBatch, hidden_states: object = None) -> Tensor:
            raise RuntimeError("gloo: connection closed by peer")

    executor, channel, losses, own = executor_of(tiny_runner(Closed()))
    first, second = batches(2)
    executor.submit(first)
    executor.submit(second)
    losses(1, "connection closed")
    says = re.escape("rank 1 was lost at step 0: connection closed")
    with pytest.raises(PeerError, match=says):
        executor.collect()
    executor.shutdown()
    assert Stop() not in channel.sent
    assert channel.is_closed
    assert not own.has_left  # the groups' peers are dead


def test_a_rank_that_is_lost_between_steps_is_lost_idle() -> None:
    executor, _, losses, _ = executor_of(tiny_runner())
    assert losses.doing == "idle before the first step"
    executor.submit(batches(1)[0])
    assert losses.doing == "at step 0"
    executor.collect()
    assert losses.doing == "idle after step 0"
    executor.shutdown()


def test_a_worker_that_failed_in_a_step_is_named() -> None:
    failed = Failed("MemoryError: full", is_users_mistake=False, step_id=0)
    executor, channel, *_ = executor_of(first_stage(), failed)
    executor.submit(batches(1)[0])
    with pytest.raises(PeerError, match="rank 1 failed at step 0: MemoryError: full"):
        executor.collect()
    executor.shutdown()
    assert channel.is_closed


def test_a_failure_of_the_leader_s_own_stays_what_it_was() -> None:
    class Broken(TinyModel):
        def forward(self, batch: ForwardBatch, hidden_states: object = None) -> Tensor:
            raise MemoryError("no room")

    executor, channel, *_ = executor_of(tiny_runner(Broken()))
    executor.submit(batches(1)[0])
    with pytest.raises(MemoryError, match="no room"):
        executor.collect()
    executor.shutdown()
    assert channel.is_closed
