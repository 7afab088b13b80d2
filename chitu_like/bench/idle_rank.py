"""A rank without a model: it does with a batch whatever a rank's host does, and launches nothing.

`python -m chitu_like.bench.idle_rank` is such a worker: it reads a Seat as one JSON line, connects to
the leader and answers each batch at once.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import msgspec
import torch

from chitu_like.core.batch import ScheduledBatch
from chitu_like.core.garbage import freeze_loaded_objects
from chitu_like.core.output import StepOutput
from chitu_like.distributed.channel import WorkerChannel
from chitu_like.worker.batch_builder import build_forward_batch
from chitu_like.worker.messages import Execute, Executed, FromWorker, ToWorker
from chitu_like.worker.slots import Slots

SILENCE_S = 30.0
CPU = torch.device("cpu")
VOCAB_SIZE = 151_936
"""Of no importance but for the length of token ids in messages."""


class Seat(msgspec.Struct, frozen=True):
    """Where an idle worker finds its leader, and how large the instance is.

    Attributes:
        address, secret: of the control channel.
        rank: in the instance, from 1.
        answers: whether it sends the outputs, as the last stage's first rank does.
        max_reqs, max_blocks, block_size: of the instance; max_blocks those of the longest request.
    """

    address: str
    secret: str
    rank: int
    answers: bool
    max_reqs: int
    max_blocks: int
    block_size: int


class IdleRank:
    """Takes batches in and invents their outputs.

    Args:
        max_reqs, max_blocks, block_size: as of Seat.
    """

    def __init__(self, *, max_reqs: int, max_blocks: int, block_size: int) -> None:
        self._block_size = block_size
        self._slots = Slots(
            max_reqs=max_reqs, max_blocks=max_blocks, vocab_size=VOCAB_SIZE, device=CPU
        )

    def execute(self, batch: ScheduledBatch) -> StepOutput:
        """Make the batch's tensors and drop them. Returns: the same token for every request."""
        self._slots.apply(batch)
        build_forward_batch(batch, self._slots, {}, block_size=self._block_size, device=CPU)
        return StepOutput(batch.step_id, [VOCAB_SIZE - 1] * sum(batch.samples))


def work(seat: Seat) -> None:
    """Answer batches until the leader says to stop. Raises: PeerError where it is lost."""
    rank = IdleRank(max_reqs=seat.max_reqs, max_blocks=seat.max_blocks, block_size=seat.block_size)
    channel: WorkerChannel[ToWorker, FromWorker] = WorkerChannel.connect(
        seat.address,
        seat.secret,
        rank=seat.rank,
        to_worker=ToWorker,
        silence_s=SILENCE_S,
        timeout_s=SILENCE_S,
        on_lost=_exit,
    )
    freeze_loaded_objects()
    while isinstance(message := channel.receive(), Execute):
        output = rank.execute(message.batch)
        if seat.answers:
            channel.send(Executed(output))
    channel.close()


def _exit(reason: str) -> NoReturn:
    os._exit(1)


if __name__ == "__main__":
    torch.set_num_threads(1)
    work(msgspec.json.decode(sys.stdin.readline(), type=Seat))
