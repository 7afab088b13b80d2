"""The mirror of the rows: what this rank remembers of a request between two batches.

Written by batches alone. A row replaces whatever its slot held, so resending every row with each
batch gives the same tokens; nothing is ever removed.

What captured decode steps read is on the device as well, by slot, and changes as the host's part does:
by one small upload a batch, or none. Behind the slots stands one more row, of the requests that pad a
captured batch; see padded_decodes.py.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from chitu_like.core.batch import SAMPLED_LAST, ScheduledBatch, SlotRow
from chitu_like.worker.device_sampling import DeviceSampling
from chitu_like.worker.device_tables import DeviceTables
from chitu_like.worker.sampling_table import SamplingTable, has_penalty
from chitu_like.worker.token_counts import TokenCounts


class Slots:
    """Every slot's block table, sampling parameters and last sampled token.

    Args:
        max_reqs: slots.
        max_blocks: blocks that the longest request needs.
        vocab_size: width of the logits.
        device: where sampled tokens and their counts live.
        counts_tokens: keep what penalties look at; only the rank that samples needs it.
        padding_block: the KV block of the requests that pad a captured batch; None: no step is captured.

    Attributes:
        block_tables: [max_reqs, max_blocks] int32 on the host; 0 behind num_blocks.
        num_blocks: [max_reqs].
        prompt_lens: [max_reqs] tokens.
        sampling: columns over slots.
        device_tables: block_tables as captured steps read them; None: no step is captured.
        device_sampling: of `sampling`, what draws tokens.
        last_sampled: [max_reqs + 1] int64 on the device, written by the sampler: SAMPLED_LAST's value.
        token_counts: of the slots with a penalty.
        prompts: prompt tokens of the slots that asked for prompt logprobs.
    """

    def __init__(
        self,
        *,
        max_reqs: int,
        max_blocks: int,
        vocab_size: int,
        device: torch.device,
        counts_tokens: bool = True,
        padding_block: int | None = None,
    ) -> None:
        self.block_tables = np.zeros((max_reqs, max_blocks), np.int32)
        self.num_blocks = np.zeros(max_reqs, np.int64)
        self.prompt_lens = np.zeros(max_reqs, np.int64)
        self.sampling = SamplingTable(max_reqs)
        self.device_sampling = DeviceSampling(max_reqs, device)
        self.device_tables: DeviceTables | None = None
        if padding_block is not None:
            self.device_tables = DeviceTables(max_reqs, max_blocks, padding_block, device)
        self.last_sampled = torch.zeros(max_reqs + 1, dtype=torch.int64, device=device)
        self.token_counts = TokenCounts(max_reqs, vocab_size, device)
        self.prompts: dict[int, NDArray[np.int64]] = {}
        self._counts_tokens = counts_tokens

    def apply(self, batch: ScheduledBatch) -> None:
        """Take in the rows and new blocks of a batch, before it is computed."""
        if batch.rows:
            index_of = {slot: index for index, slot in enumerate(batch.slots)}
            ends = np.cumsum(batch.num_tokens)
            for row in batch.rows:
                self._replace(row)
            self.device_sampling.apply([row.slot for row in batch.rows], self.sampling)
            for row in batch.rows:
                index = index_of[row.slot]
                last_position = batch.num_computed[index] + batch.num_tokens[index] - 1
                last_token = batch.token_ids[ends[index] - 1]
                if last_token == SAMPLED_LAST and last_position >= len(row.history):
                    self._count_unknown(row.slot)
        for slot, block_ids in zip(batch.slots, batch.new_blocks, strict=True):
            if block_ids:
                self._append_blocks(slot, block_ids)
        if self.device_tables is not None:
            self.device_tables.flush()

    def _replace(self, row: SlotRow) -> None:
        slot = row.slot
        self.prompt_lens[slot] = row.prompt_len
        self.sampling.set(slot, row.sampling)
        self.num_blocks[slot] = 0
        self.block_tables[slot] = 0  # the padding of attention/base.py
        self._append_blocks(slot, row.block_ids)
        self.token_counts.drop(slot)
        self.prompts.pop(slot, None)
        history = np.array(row.history, np.int64)
        if self._counts_tokens and has_penalty(row.sampling):
            self.token_counts.set(slot, history[: row.prompt_len], history[row.prompt_len :])
        if row.sampling.num_prompt_logprobs >= 0:
            self.prompts[slot] = history[: row.prompt_len]

    def _append_blocks(self, slot: int, block_ids: list[int]) -> None:
        start = int(self.num_blocks[slot])
        stop = start + len(block_ids)
        assert stop <= self.block_tables.shape[1], f"slot {slot} has {stop} blocks, more than fit"
        self.block_tables[slot, start:stop] = block_ids
        self.num_blocks[slot] = stop
        if self.device_tables is not None:
            self.device_tables.note(slot, start, block_ids)

    def _count_unknown(self, slot: int) -> None:
        """Count the token that only the device knows: a resent row's history ends before it."""
        slots = np.array([slot], np.int64)
        if self.token_counts.is_counted(slots).all():
            self.token_counts.add(slots, self.last_sampled[slot : slot + 1])
