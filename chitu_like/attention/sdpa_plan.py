"""How the `sdpa` backend cuts a batch into pieces; why, its own docstring says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from chitu_like.attention.base import AttentionMetadata, AttentionSpec, ForwardBatch
from chitu_like.attention.ref import visible

MAX_PADDING = 1.25
"""Gathered tokens over wanted ones, at most."""

Where = slice | Tensor
"""Rows of a tensor: a slice reads in place, a tensor of indices gathers."""


@dataclass(frozen=True, kw_only=True)
class Decodes:
    """Requests with one query token each, attended together.

    Attributes:
        queries: their rows of q.
        keys: their rows of the flattened cache, num_reqs * max_len of them.
        num_reqs: how many.
        mask: [num_reqs, 1, 1, max_len], added to the scores; None where nothing is padded.
    """

    queries: Where
    keys: Where
    num_reqs: int
    mask: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Consecutive tokens of one request, at the end of its context.

    Attributes:
        queries: their rows of q.
        keys: rows of the flattened cache that any of them sees.
        mask: [query_len, num_keys], added to the scores; None for plain causality from token 0.
    """

    queries: slice
    keys: Where
    mask: Tensor | None


@dataclass(frozen=True, kw_only=True)
class SdpaMetadata(AttentionMetadata):
    """For every window that occurs over the layers, the pieces a batch falls into."""

    decodes: dict[int | None, list[Decodes]]
    chunks: dict[int | None, list[Chunk]]


class SdpaPlanner:
    """Cuts one batch into pieces.

    Args:
        batch: the batch.
        spec: the model's attention.
        max_gather: tokens gathered at once.
    """

    def __init__(self, batch: ForwardBatch, spec: AttentionSpec, max_gather: int) -> None:
        self._batch = batch
        self._spec = spec
        self._max_gather = max_gather
        self._first_blocks = self._find_runs()

    def decodes(self, window: int | None) -> Iterator[Decodes]:
        """Pieces of the leading requests with one query token."""
        lens = self._batch.context_lens
        scattered = []
        for row in range(self._batch.num_decodes):
            seen = lens[row] if window is None else min(window, lens[row])
            if self._batch.num_decodes == 1 and row in self._first_blocks:
                # Beside others one gathered call is faster, measured from 2 requests of 64 tokens
                # to 32 of 4096.
                keys = self._run_slots(row, lens[row] - seen, seen)
                yield Decodes(queries=slice(row, row + 1), keys=keys, num_reqs=1, mask=None)
            else:
                scattered.append((seen, row))
        for group in self._grouped(sorted(scattered)):
            yield self._gather(group)

    def chunks(self, window: int | None) -> Iterator[Chunk]:
        """Pieces of the other requests, one each."""
        batch = self._batch
        start = batch.num_decodes
        for row in range(batch.num_decodes, len(batch.query_lens)):
            query_len, context_len = batch.query_lens[row], batch.context_lens[row]
            seen = context_len if window is None else min(context_len, query_len + window - 1)
            if row in self._first_blocks:
                keys: Where = self._run_slots(row, context_len - seen, seen)
            else:
                keys = self._slots([row], [context_len - seen], seen)
            yield Chunk(
                queries=slice(start, start + query_len),
                keys=keys,
                mask=self._chunk_mask(query_len, seen, window),
            )
            start += query_len

    def _chunk_mask(self, query_len: int, seen: int, window: int | None) -> Tensor | None:
        if query_len == seen and (window is None or window >= seen):
            return None
        device = self._spec.device
        mask = torch.zeros(query_len, seen, dtype=self._spec.dtype, device=device)
        return mask.masked_fill_(~visible(query_len, seen, window, device), -torch.inf)

    def _find_runs(self) -> dict[int, int]:
        """Row -> first block of the requests whose blocks lie one behind the other.

        Only on a CPU: elsewhere reading the tables would wait for the device.
        """
        tables, block_size = self._batch.block_tables, self._spec.block_size
        if tables.device.type != "cpu" or not len(self._batch.context_lens):
            return {}
        is_broken = tables[:, 1:] != tables[:, :-1] + 1
        # The first break of each row; a column of breaks behind the last makes one sure to be.
        is_broken = F.pad(is_broken, (0, 1), value=True)
        run_lens = (is_broken.int().argmax(1) + 1).tolist()
        firsts = tables[:, 0].tolist()
        lens = self._batch.context_lens
        return {
            row: firsts[row]
            for row, blocks in enumerate(run_lens)
            if blocks * block_size >= lens[row]
        }

    def _run_slots(self, row: int, start: int, num_tokens: int) -> slice:
        first = self._first_blocks[row] * self._spec.block_size + start
        return slice(first, first + num_tokens)

    def _grouped(self, requests: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
        """Cut (tokens seen, row), shortest first, into groups that are gathered together."""
        group: list[tuple[int, int]] = []
        total = 0
        for seen, row in requests:
            padded = seen * (len(group) + 1)
            if group and (padded > self._max_gather or padded > MAX_PADDING * (total + seen)):
                yield group
                group, total = [], 0
            group.append((seen, row))
            total += seen
        if group:
            yield group

    def _gather(self, group: list[tuple[int, int]]) -> Decodes:
        lens = [seen for seen, _ in group]
        rows = [row for _, row in group]
        max_len = max(lens)
        starts = [self._batch.context_lens[row] - seen for seen, row in group]
        mask = None
        if min(lens) < max_len:
            device = self._spec.device
            is_padding = torch.arange(max_len, device=device) >= self._index(lens).unsqueeze(1)
            mask = torch.zeros(len(rows), max_len, dtype=self._spec.dtype, device=device)
            mask = mask.masked_fill_(is_padding, -torch.inf)[:, None, None, :]
        is_range = rows == list(range(rows[0], rows[0] + len(rows)))
        return Decodes(
            queries=slice(rows[0], rows[0] + len(rows)) if is_range else self._index(rows),
            keys=self._slots(rows, starts, max_len),
            num_reqs=len(rows),
            mask=mask,
        )

    def _slots(self, rows: list[int], starts: list[int], num_tokens: int) -> Tensor:
        """Slots of `num_tokens` tokens of each row from its start on; its last one again beyond it."""
        lens = [self._batch.context_lens[row] for row in rows]
        steps = torch.arange(num_tokens, device=self._spec.device)
        positions = self._index(starts).unsqueeze(1) + steps  # [num_rows, num_tokens]
        positions = torch.minimum(positions, self._index(lens).unsqueeze(1) - 1)
        block_size = self._spec.block_size
        tables = self._batch.block_tables.index_select(0, self._index(rows)).long()
        blocks = tables.gather(1, positions // block_size)
        return (blocks * block_size + positions % block_size).flatten()

    def _index(self, values: list[int]) -> Tensor:
        return torch.tensor(values, device=self._spec.device)
