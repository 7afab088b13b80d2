"""Decodes of a padded number where recorded kernels read them, laid out from a few numbers a request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chitu_like.attention.base import ForwardBatch, LayerKVCache
from chitu_like.ops.decode_inputs import DecodeInputs, decode_inputs_op
from chitu_like.ops.upload import upload
from chitu_like.worker.options import RunnerOptions
from chitu_like.worker.slots import Slots

LONGEST_FIRST = 48
"""Decodes from which on their order is told. Of fewer, all that a GPU can run at once does."""


class PaddedDecodes:
    """A batch of `size` decodes at fixed addresses; requests that pad it are in the row behind the slots.

    Those have one token, in a block that belongs to nobody.

    Args:
        size: of the batch.
        inputs: for as many requests; batches of which one is computed at a time may share it.
        slots: with device_tables.
        kv_caches: of the pool, its padding block included.
        options: of the runner.

    Attributes:
        batch: its tensors are always the same; what is on the host is of no request.
    """

    def __init__(
        self,
        size: int,
        inputs: DecodeInputs,
        slots: Slots,
        kv_caches: dict[int, LayerKVCache],
        options: RunnerOptions,
    ) -> None:
        assert slots.device_tables is not None, "recorded steps read the tables on the device"
        self._size, self._inputs, self._slots = size, inputs, slots
        self._tables, self._block_size = slots.device_tables.tables, options.block_size
        self._op = decode_inputs_op.resolve(
            options.torch_device, options.torch_dtype, options.op_impl
        )
        self._padding_slot = len(slots.num_blocks)
        self._rows = torch.zeros(5, size, dtype=torch.int32, device=options.torch_device)
        self._rows[0] = self._padding_slot
        self._rows[4] = torch.arange(size)
        self.batch = ForwardBatch(
            input_ids=inputs.input_ids,
            positions=inputs.positions,
            slot_mapping=inputs.slot_mapping,
            block_tables=inputs.block_tables,
            query_lens=[1] * size,
            context_lens=[1] * size,
            device_context_lens=inputs.context_lens,
            num_decodes=size,
            decode_order=self._rows[4] if size >= LONGEST_FIRST else None,
            logits_indices=torch.arange(size, device=options.torch_device),
            kv_caches=kv_caches,
        )
        self.gather()

    @property
    def slots(self) -> Tensor:
        """[size] int32 on the device."""
        return self._rows[0]

    @property
    def output_positions(self) -> Tensor:
        """[size] int32 on the device."""
        return self._rows[3]

    def write(
        self,
        slots: Sequence[int],
        positions: Sequence[int],
        token_ids: Sequence[int],
        output_positions: Sequence[int] | NDArray[np.int64],
    ) -> ForwardBatch:
        """Queue one small copy of what `gather` reads; `Slots` has already taken in the batch.

        Args:
            slots: of at most `size` requests.
            positions: of their input tokens.
            token_ids: those, or SAMPLED_LAST.
            output_positions: of what is sampled.

        Returns: `batch`, with the context lengths of these requests on the host.
        """
        num_reqs = len(slots)
        rows = np.zeros((5, self._size), np.int32)
        rows[0, num_reqs:] = self._padding_slot
        rows[:4, :num_reqs] = (slots, positions, token_ids, output_positions)
        if self.batch.decode_order is not None:
            rows[4] = np.argsort(-rows[1], kind="stable")
        upload(rows, self._rows.device, self._rows)
        return replace(self.batch, context_lens=(rows[1] + 1).tolist())

    def gather(self) -> None:
        """Fill the batch's tensors, on the device alone."""
        self._op(
            self._rows[:3], self._tables, self._slots.last_sampled, self._block_size, self._inputs
        )
