"""Tokens that come back to the first stage: in order, as late as possible, none forgotten."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from chitu_like.core.batch import SAMPLED_LAST, ScheduledBatch
from chitu_like.distributed.rendezvous import PipelineGroups
from chitu_like.worker import pipeline
from chitu_like.worker.pipeline import LinkedStage, Stage
from chitu_like.worker.slots import Slots

NUM_STAGES = 2
CPU = torch.device("cpu")


class Group:
    """The first stage's place among NUM_STAGES."""

    def rank(self) -> int:
        return 0

    def size(self) -> int:
        return NUM_STAGES


class Transport:
    """Stands for torch.distributed: each receive gets the next tokens when it is waited for."""

    def __init__(self) -> None:
        self.arriving: list[list[int]] = []
        self.num_awaited = 0

    def irecv(self, tensor: Tensor, *, group: Group, group_src: int) -> Transport.Work:
        assert group_src == NUM_STAGES - 1
        return Transport.Work(self, tensor)

    class Work:
        def __init__(self, transport: Transport, tensor: Tensor) -> None:
            self._transport, self._tensor = transport, tensor

        def wait(self) -> None:
            self._transport.num_awaited += 1
            self._tensor.copy_(torch.tensor(self._transport.arriving.pop(0)))


@pytest.fixture
def transport(monkeypatch: pytest.MonkeyPatch) -> Transport:
    transport = Transport()
    monkeypatch.setattr(pipeline.dist, "irecv", transport.irecv)
    return transport


@pytest.fixture
def stage() -> LinkedStage:
    groups = PipelineGroups(hidden_states=Group(), token_ids=Group())  # type: ignore[arg-type]
    return LinkedStage(groups, hidden_size=4, dtype=torch.float32, device=CPU)


@pytest.fixture
def slots() -> Slots:
    return Slots(max_reqs=8, max_blocks=4, vocab_size=50, device=CPU)


def batch_of(
    step_id: int, slots: list[int], *, unknown: bool, samples: bool = True
) -> ScheduledBatch:
    """Each request has two tokens, the last of which only the device may know."""
    tokens = [7, SAMPLED_LAST if unknown else 8] * len(slots)
    count = len(slots)
    return ScheduledBatch(
        step_id,
        slots,
        [2] * count,
        [0] * count,
        [samples] * count,
        tokens,
        [[]] * count,
        [],
        [],
        [],
        0,
    )


def launch(stage: LinkedStage, slots: Slots, batch: ScheduledBatch) -> None:
    stage.await_tokens(batch, slots)
    stage.expect_tokens(batch)


def test_only_the_tokens_that_a_batch_needs_are_waited_for(
    stage: LinkedStage, slots: Slots, transport: Transport
) -> None:
    transport.arriving = [[11, 12], [13], [14]]
    launch(stage, slots, batch_of(0, [3, 5], unknown=False))
    launch(stage, slots, batch_of(1, [1], unknown=False))
    assert transport.num_awaited == 0
    launch(stage, slots, batch_of(2, [5], unknown=True))
    assert transport.num_awaited == 1
    assert slots.last_sampled[[3, 5]].tolist() == [11, 12]


def test_the_latest_tokens_of_a_slot_count(
    stage: LinkedStage, slots: Slots, transport: Transport
) -> None:
    """A slot that was given to another request is in two batches on their way."""
    transport.arriving = [[11], [12], [13]]
    launch(stage, slots, batch_of(0, [3], unknown=False))
    launch(stage, slots, batch_of(1, [3], unknown=False))
    launch(stage, slots, batch_of(2, [4], unknown=False))
    stage.await_tokens(batch_of(3, [3], unknown=True), slots)
    assert slots.last_sampled[3] == 12
    assert transport.num_awaited == 2


def test_tokens_that_nobody_needs_do_not_pile_up(
    stage: LinkedStage, slots: Slots, transport: Transport
) -> None:
    transport.arriving = [[i] for i in range(20)]
    for step_id in range(20):
        launch(stage, slots, batch_of(step_id, [step_id % 8], unknown=False))
    assert transport.num_awaited >= 20 - (NUM_STAGES + 2)


def test_a_batch_that_samples_nothing_brings_no_tokens(
    stage: LinkedStage, slots: Slots, transport: Transport
) -> None:
    launch(stage, slots, batch_of(0, [3], unknown=False, samples=False))
    stage.forget()
    assert transport.num_awaited == 0


def test_forgetting_takes_in_all_and_writes_nothing(
    stage: LinkedStage, slots: Slots, transport: Transport
) -> None:
    transport.arriving = [[11], [12]]
    launch(stage, slots, batch_of(0, [3], unknown=False))
    launch(stage, slots, batch_of(1, [4], unknown=False))
    stage.forget()
    assert transport.arriving == []
    assert np.all(slots.last_sampled.numpy() == 0)


def test_a_single_stage_has_nobody_to_talk_to(slots: Slots) -> None:
    stage = Stage()
    stage.await_tokens(batch_of(0, [3], unknown=True), slots)
    assert stage.receive(5) is None
    stage.return_tokens(torch.zeros(1, dtype=torch.int64))
    with pytest.raises(RuntimeError):
        stage.send(torch.zeros(1))
