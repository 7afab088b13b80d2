"""What pipeline stages hand to each other: hidden states on to the next, sampled tokens back.

Both travel between ranks of the same tensor-parallel place, device to device. Sends and receives are
only queued: on CUDA they wait for each other on the device and never hold up the host.

Why nobody waits in a circle. Stage s computes batch k once stage s - 1 has sent its hidden states, and
the first stage computes a batch that continues what batch k sampled once the last stage has sent k's
tokens. Each wait is thus for an earlier batch, or for the same batch at an earlier stage, so the
waits have an order. Queues must not add waits of their own: within a process group, operations run
in the order they were queued, so with one group for both, the hidden states of batch k + 1 would wait
on the first stage behind the receipt of k's tokens, while the last stage has nothing to compute.
Therefore hidden states and tokens have a group each. Receipts of tokens are queued right behind the
hidden states of their batch, as the last stage queues its sends: NCCL's first message between two
ranks makes both hosts wait for each other, and so they always meet.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from chitu_like.core.batch import SAMPLED_LAST, ScheduledBatch
from chitu_like.distributed.rendezvous import PipelineGroups
from chitu_like.ops.upload import upload
from chitu_like.worker.slots import Slots


class Stage:
    """The only stage of its instance: nothing comes, nothing goes."""

    def await_tokens(self, batch: ScheduledBatch, slots: Slots) -> None:
        """Have `slots.last_sampled` ready for a batch that is about to be built."""

    def receive(self, num_tokens: int) -> Tensor | None:
        """Hidden states [num_tokens, hidden_size] of the stage before; None on the first."""
        return None

    def send(self, hidden_states: Tensor) -> None:
        """Hand hidden states to the next stage; they must not be written to any more."""
        raise RuntimeError("the last stage has nobody to send hidden states to")

    def expect_tokens(self, batch: ScheduledBatch) -> None:
        """Note that the last stage samples this batch, which was just sent on."""

    def return_tokens(self, token_ids: Tensor) -> None:
        """Let the first stage know what was sampled, [num_samples] int64; not to be written to."""

    def kept_bytes(self, num_tokens: int) -> int:
        """Most bytes of hidden states that wait to be sent while steps of `num_tokens` are computed."""
        return 0

    def forget(self) -> None:
        """Take in and drop what is still on its way: its slots are about to be replaced."""


class _Returning(NamedTuple):
    """Tokens on their way to the first stage."""

    slots: NDArray[np.int64]
    token_ids: Tensor
    work: dist.Work


class LinkedStage(Stage):
    """One stage of several.

    Args:
        groups: of the ranks with this rank's tensor-parallel place.
        hidden_size: of the model.
        dtype: of hidden states.
        device: of all tensors.
    """

    def __init__(
        self,
        groups: PipelineGroups,
        *,
        hidden_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._groups = groups
        self._rank, self._size = groups.hidden_states.rank(), groups.hidden_states.size()
        self._hidden_size = hidden_size
        self._dtype = dtype
        self._device = device
        self._returning: deque[_Returning] = deque()
        self._sent: deque[tuple[dist.Work, Tensor]] = deque()
        # The leader submits no batch before it has collected the one so many earlier, which has by
        # then been through all stages: waiting for it takes no time.
        self._num_in_flight = most_in_flight(self._size)

    def await_tokens(self, batch: ScheduledBatch, slots: Slots) -> None:
        """See Stage."""
        unknown = _slots_of_unknown(batch)
        is_needed = [bool(np.isin(entry.slots, unknown).any()) for entry in self._returning]
        last_needed = max((i for i, needed in enumerate(is_needed) if needed), default=-1)
        num_old = len(self._returning) - self._num_in_flight
        for _ in range(max(last_needed + 1, num_old)):  # in order: a later token of a slot counts
            entry = self._returning.popleft()
            entry.work.wait()
            slots.last_sampled[upload(entry.slots, self._device)] = entry.token_ids

    def receive(self, num_tokens: int) -> Tensor | None:
        """See Stage."""
        if self._rank == 0:
            return None
        hidden_states = torch.empty(
            num_tokens, self._hidden_size, dtype=self._dtype, device=self._device
        )
        _queue_receive(hidden_states, self._groups.hidden_states, self._rank - 1).wait()
        return hidden_states

    def send(self, hidden_states: Tensor) -> None:
        """See Stage."""
        self._send(hidden_states, self._groups.hidden_states, self._rank + 1)

    def expect_tokens(self, batch: ScheduledBatch) -> None:
        """See Stage."""
        slots = np.array(batch.slots, np.int64)[np.array(batch.samples, np.bool_)]
        if self._rank == 0 and slots.size:
            token_ids = torch.empty(slots.size, dtype=torch.int64, device=self._device)
            work = _queue_receive(token_ids, self._groups.token_ids, self._size - 1)
            self._returning.append(_Returning(slots, token_ids, work))

    def return_tokens(self, token_ids: Tensor) -> None:
        """See Stage."""
        self._send(token_ids, self._groups.token_ids, 0)

    def kept_bytes(self, num_tokens: int) -> int:
        """See Stage."""
        if self._rank == self._size - 1:
            return 0
        return most_sent_bytes(
            self._size, num_tokens=num_tokens, hidden_size=self._hidden_size, dtype=self._dtype
        )

    def forget(self) -> None:
        """See Stage."""
        while self._returning:
            self._returning.popleft().work.wait()
        while self._sent:
            self._sent.popleft()[0].wait()

    def _send(self, tensor: Tensor, group: dist.ProcessGroup, receiver: int) -> None:
        """Queue a send, and keep the tensor until it has left."""
        tensor = tensor.contiguous()
        work = dist.isend(tensor, group=group, group_dst=receiver)
        assert work is not None, "this rank is in its own group"
        self._sent.append((work, tensor))
        while len(self._sent) > self._num_in_flight:
            self._sent.popleft()[0].wait()


def most_in_flight(num_stages: int) -> int:
    """Batches that are submitted and not collected: one a stage, and one planned meanwhile."""
    return num_stages + 1


def most_sent_bytes(
    num_stages: int, *, num_tokens: int, hidden_size: int, dtype: torch.dtype
) -> int:
    """Bytes of hidden states that a stage before the last keeps until they have left, at most."""
    return most_in_flight(num_stages) * num_tokens * hidden_size * dtype.itemsize


def _queue_receive(tensor: Tensor, group: dist.ProcessGroup, sender: int) -> dist.Work:
    work = dist.irecv(tensor, group=group, group_src=sender)
    assert work is not None, "this rank is in its own group"
    return work


def _slots_of_unknown(batch: ScheduledBatch) -> NDArray[np.int64]:
    """The slots whose next input token this batch leaves to the device."""
    unknown = np.flatnonzero(np.array(batch.token_ids, np.int64) == SAMPLED_LAST)
    requests = np.searchsorted(np.cumsum(batch.num_tokens), unknown, side="right")
    return np.array(batch.slots, np.int64)[requests]
