"""The executor keeps the order, computes beside its caller, and passes failures on."""

from __future__ import annotations

import os
import signal
import threading

import pytest
import torch
from tiny_model import TinyModel, sampling_row, tiny_runner

from chitu_like.attention.base import ForwardBatch
from chitu_like.core.batch import SAMPLED_LAST, ScheduledBatch, SlotRow
from chitu_like.core.errors import PeerError
from chitu_like.engine.executor import Executor
from chitu_like.worker.executor import LocalExecutor


def decode_batches(count: int) -> list[ScheduledBatch]:
    """One request of three prompt tokens, then tokens that only the device knows."""
    row = SlotRow(0, 3, list(range(16)), sampling_row(), [])
    first = ScheduledBatch(0, [0], [3], [0], [True], [5, 6, 7], [[]], [row], [], [], 0)
    rest = [
        ScheduledBatch(i, [0], [1], [2 + i], [True], [SAMPLED_LAST], [[]], [], [], [], 1)
        for i in range(1, count)
    ]
    return [first, *rest]


def tokens_of(executor: Executor, count: int) -> list[int]:
    tokens, waiting = [], 0
    for batch in decode_batches(count):
        if waiting == executor.max_in_flight:
            tokens += executor.collect().token_ids
            waiting -= 1
        executor.submit(batch)
        waiting += 1
    return tokens + [token for _ in range(waiting) for token in executor.collect().token_ids]


class Blocked(TinyModel):
    """Computes only when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.may_run = threading.Event()

    def forward(self, batch: ForwardBatch, hidden_states: object = None) -> torch.Tensor:
        assert self.may_run.wait(30)
        return super().forward(batch)


class Failing(TinyModel):
    """Breaks at the second batch."""

    num_batches = 0

    def forward(self, batch: ForwardBatch, hidden_states: object = None) -> torch.Tensor:
        self.num_batches += 1
        if self.num_batches == 2:
            raise MemoryError("no room for the second batch")
        return super().forward(batch)


def test_overlap_gives_equal_tokens() -> None:
    outputs = []
    for overlap in (False, True):
        executor = LocalExecutor(tiny_runner(), max_in_flight=1 + overlap)
        assert executor.max_in_flight == 1 + overlap
        outputs.append(tokens_of(executor, 12))
        executor.shutdown()
    assert outputs[0] == outputs[1]
    assert len(set(outputs[0])) > 1, "a model that says one thing proves nothing"


def test_outputs_come_in_the_order_of_the_batches() -> None:
    executor = LocalExecutor(tiny_runner(), max_in_flight=2)
    first, second = decode_batches(2)
    executor.submit(first)
    executor.submit(second)
    assert [executor.collect().step_id, executor.collect().step_id] == [0, 1]
    executor.shutdown()


def test_submit_does_not_wait_for_the_computation() -> None:
    model = Blocked()
    executor = LocalExecutor(tiny_runner(model), max_in_flight=2)
    for batch in decode_batches(2):
        executor.submit(batch)  # would hang here
    model.may_run.set()
    assert len(executor.collect().token_ids) == 1
    executor.shutdown()


def test_an_interrupted_collect_leaves_its_batch_to_the_next() -> None:
    model = Blocked()
    executor = LocalExecutor(tiny_runner(model), max_in_flight=2)
    for batch in decode_batches(2):
        executor.submit(batch)
    timer = threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        executor.collect()
    model.may_run.set()
    assert [executor.collect().step_id, executor.collect().step_id] == [0, 1]
    executor.shutdown()


def test_the_thread_computes_with_the_threads_of_its_maker() -> None:
    seen = []

    class Counting(TinyModel):
        def forward(self, batch: ForwardBatch, hidden_states: object = None) -> torch.Tensor:
            seen.append(torch.get_num_threads())
            return super().forward(batch)

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        executor = LocalExecutor(tiny_runner(Counting()), max_in_flight=2)
        tokens_of(executor, 1)
        executor.shutdown()
    finally:
        torch.set_num_threads(before)
    assert seen == [3]


@pytest.mark.parametrize("overlap", [False, True])
def test_a_failure_is_raised_by_collect_as_it_was_and_stays(overlap: bool) -> None:
    executor = LocalExecutor(tiny_runner(Failing()), max_in_flight=1 + overlap)
    first, second, third = decode_batches(3)
    executor.submit(first)
    assert executor.collect().token_ids
    executor.submit(second)
    with pytest.raises(MemoryError, match="second batch"):
        executor.collect()
    executor.submit(third)
    with pytest.raises(PeerError):
        executor.collect()
    with pytest.raises(PeerError):
        executor.collect()
    executor.shutdown()


def test_a_batch_behind_a_failed_one_is_not_computed() -> None:
    model = Failing()
    executor = LocalExecutor(tiny_runner(model), max_in_flight=2)
    first, second, third = decode_batches(3)
    executor.submit(first)
    executor.submit(second)
    executor.collect()
    executor.submit(third)
    with pytest.raises(MemoryError):
        executor.collect()
    executor.shutdown()
    assert model.num_batches == 2


@pytest.mark.parametrize("overlap", [False, True])
def test_shutdown_twice_and_with_batches_in_flight(overlap: bool) -> None:
    executor = LocalExecutor(tiny_runner(), max_in_flight=1 + overlap)
    executor.submit(decode_batches(1)[0])
    executor.shutdown()
    executor.shutdown()
    with pytest.raises(PeerError):
        executor.collect()
    with pytest.raises(PeerError):
        executor.submit(decode_batches(1)[0])
    assert not [t for t in threading.enumerate() if t.name.startswith("model-runner")]
