"""The `sdpa` backend: torch's scaled_dot_product_attention over the paged cache.

What a step costs here is reading keys and values, so the plan avoids copying them:

- A request whose blocks lie one behind the other (always so with the skew layout, whose one block
  holds the whole context) is read in place.
- Other decodes are gathered, several at a time, into a padded batch; requests of similar length
  together, so padding stays small, and no more than stays in the processor's cache: a gather that
  spills is read from memory three times instead of once. Padding repeats the request's own last
  token under a mask, so no request ever touches another's numbers.
- The query heads that share a key head are attended as the rows of ONE head, so keys are not
  repeated. `enable_gqa` would take torch's slow path on a CPU (100 times the time at one token).

Measured on two Zen 5 cores, one thread, bfloat16, 14 query and 2 key heads of 64, 512 tokens in
blocks of 16 (us): one request in place 56, gathered alone 103; sixteen in place 918, gathered alone
1740, gathered together 1014. With 16 and 8 heads of 128 and 2048 tokens: sixteen in place 29,300,
alone 57,000, together (134 MB) 102,000.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from chitu_like.attention.base import (
    AttentionMetadata,
    AttentionSpec,
    ForwardBatch,
    LayerKVCache,
    attention_backends,
)
from chitu_like.attention.ref import visible

GATHER_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}
"""Keys and values gathered at once: a share of the last-level cache; bounded memory on CUDA."""
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


@attention_backends.register("sdpa")
class SdpaBackend:
    """Fast on CPUs; runs on CUDA too.

    Args:
        spec: the model's attention.
    """

    supports_cuda_graph: ClassVar[bool] = False

    def __init__(self, spec: AttentionSpec) -> None:
        self._spec = spec
        self._group_size = spec.num_heads // spec.num_kv_heads
        token_bytes = 2 * spec.num_kv_heads * spec.head_dim * spec.dtype.itemsize
        self._max_gather = max(1, GATHER_BYTES.get(spec.device.type, 64 << 20) // token_bytes)

    @classmethod
    def supports(cls, spec: AttentionSpec) -> str | None:
        """See AttentionBackend: everything."""
        return None

    def plan(self, batch: ForwardBatch) -> SdpaMetadata:
        """See AttentionBackend."""
        planner = _Planner(batch, self._spec, self._max_gather)
        windows = set(self._spec.windows)
        return SdpaMetadata(
            decodes={window: list(planner.decodes(window)) for window in windows},
            chunks={window: list(planner.chunks(window)) for window in windows},
        )

    def run(
        self,
        q: Tensor,
        kv_cache: LayerKVCache,
        metadata: AttentionMetadata,
        *,
        scale: float,
        window: int | None,
    ) -> Tensor:
        """See AttentionBackend."""
        assert isinstance(metadata, SdpaMetadata), f"plan of another backend: {metadata}"
        k = kv_cache.k.flatten(0, 1)  # [num_slots, num_kv_heads, head_dim]
        v = kv_cache.v.flatten(0, 1)
        decodes, chunks = metadata.decodes[window], metadata.chunks[window]
        if len(decodes) == 1 and not chunks and isinstance(decodes[0].queries, slice):
            return self._decode(q, k, v, decodes[0], scale)
        if len(chunks) == 1 and not decodes:
            return self._prefill(q, k, v, chunks[0], scale)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        for piece in decodes:
            out[piece.queries] = self._decode(q, k, v, piece, scale)
        for chunk in chunks:
            out[chunk.queries] = self._prefill(q, k, v, chunk, scale)
        return out

    def _decode(self, q: Tensor, k: Tensor, v: Tensor, piece: Decodes, scale: float) -> Tensor:
        shape = (piece.num_reqs, -1, self._spec.num_kv_heads, self._spec.head_dim)
        grouped = q[piece.queries].view(shape[0], shape[2], self._group_size, shape[3])
        attended = F.scaled_dot_product_attention(
            grouped,  # [num_reqs, num_kv_heads, group_size, head_dim]
            _rows(k, piece.keys).view(shape).transpose(1, 2),
            _rows(v, piece.keys).view(shape).transpose(1, 2),
            attn_mask=piece.mask,
            scale=scale,
        )
        return attended.reshape(shape[0], self._spec.num_heads, shape[3])

    def _prefill(self, q: Tensor, k: Tensor, v: Tensor, chunk: Chunk, scale: float) -> Tensor:
        # Key heads become the batch, the queries that share one its heads; keys have stride 0.
        grouped = q[chunk.queries].unflatten(1, (-1, self._group_size)).permute(1, 2, 0, 3)
        sizes = (-1, self._group_size, -1, -1)
        attended = F.scaled_dot_product_attention(
            grouped,  # [num_kv_heads, group_size, query_len, head_dim]
            _rows(k, chunk.keys).transpose(0, 1).unsqueeze(1).expand(sizes),
            _rows(v, chunk.keys).transpose(0, 1).unsqueeze(1).expand(sizes),
            attn_mask=chunk.mask,
            is_causal=chunk.mask is None,
            scale=scale,
        )
        return attended.permute(2, 0, 1, 3).flatten(1, 2)


def _rows(cache: Tensor, where: Where) -> Tensor:
    return cache[where] if isinstance(where, slice) else cache.index_select(0, where)


class _Planner:
    """Cuts one batch into pieces."""

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
            if row in self._first_blocks:
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
