"""How decodes are cut into splits: programs of about equal length, whatever the requests' lengths.

A request of a decode has one query token, and its keys are cut into splits, a program each and key-value
head (FlashDecoding). A batch whose requests were all cut into the same number would last as long as the
longest of them. So splits are cut to a common length of the batch: the number of key tiles of all requests
over the number of splits wanted, rounded up. A request has as few splits as that allows, and they share
its tiles evenly. Everything is computed where the context lengths are, so that it can be captured.

With n requests of t_i tiles, w splits wanted and the length s = max(ceil(sum t_i / w), min_tiles), there
are sum ceil(t_i / s) < sum t_i / s + n <= w + n splits: that much room is enough for any lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SPLIT_FIELDS = 4  # of a row of the table
UNBOUNDED = 1 << 30
"""More splits than any batch has tiles, and small enough to be added to their number in 32 bits."""


class SplitRoom:
    """Memory that batches share of which only one is computed at a time, as captured ones are.

    Args:
        device: where it is.
    """

    def __init__(self, device: torch.device) -> None:
        self._floats = torch.empty(0, dtype=torch.float32, device=device)

    def take(self, count: int) -> Tensor:
        """[count] float32, the same for everybody; an earlier, smaller piece stays as it is."""
        if count > len(self._floats):
            self._floats = torch.empty(count, dtype=torch.float32, device=self._floats.device)
        return self._floats[:count]


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What decides how long the splits of a batch are.

    Attributes:
        keys: of a tile.
        min_tiles: of a split, unless its request has less.
        wanted: splits of a batch, about; UNBOUNDED: every split has min_tiles, but for what sharing
            a request's tiles evenly takes off. Then a request's splits depend on nothing but its own
            length.
    """

    keys: int
    min_tiles: int = 1
    wanted: int = UNBOUNDED

    def most(self, num_reqs: int, max_tokens: int) -> int:
        """The most splits that `num_reqs` requests of at most `max_tokens` can have."""
        tiles = -(-max_tokens // self.keys)
        return min(num_reqs * max(1, -(-tiles // self.min_tiles)), self.wanted + num_reqs)


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The splits of a batch's decodes, cut for each window of the model, and room for their results.

    Layers use the room one after the other. Splits of a request stand side by side, in order.

    Attributes:
        cut: what they were cut by.
        windows: of the model's layers; None for full attention.
        window_lens: [num_windows] int32, the same where the kernel is; 0 for None.
        table: [num_windows, room, SPLIT_FIELDS] int32: of each split its request, the first of its
            keys, one past the last, and the number of splits of the request. Requests without a
            context have a split without keys. In rows to spare the request is -1.
        spans: [num_windows, num_reqs, 2] int32: of each request the first split, and their number.
        outputs: [room, num_heads, head_dim] float32; empty where each request has one split.
        log_sums: [room, num_heads] float32, likewise.
    """

    cut: Cut
    windows: Sequence[int | None]
    window_lens: Tensor
    table: Tensor
    spans: Tensor
    outputs: Tensor
    log_sums: Tensor

    @classmethod
    def allocate(
        cls,
        cut: Cut,
        windows: Sequence[int | None],
        window_lens: Tensor,
        *,
        num_reqs: int,
        max_tokens: int,
        num_heads: int,
        head_dim: int,
        room: SplitRoom | None = None,
    ) -> Splits:
        """For a batch of `num_reqs`, padding included, of at most `max_tokens` each; not cut yet.

        Args:
            cut: see the class.
            windows: likewise.
            window_lens: likewise.
            num_reqs: one at least.
            max_tokens: in the cache.
            num_heads: of the queries.
            head_dim: likewise.
            room: has the results in it; None: they have memory of their own.
        """
        device = window_lens.device
        most = cut.most(num_reqs, max_tokens)
        num_sums = most * num_heads if most > num_reqs else 0
        floats = (room or SplitRoom(device)).take(num_sums * (head_dim + 1))
        rows = torch.empty(len(windows), most, SPLIT_FIELDS, dtype=torch.int32, device=device)
        spans = torch.empty(len(windows), num_reqs, 2, dtype=torch.int32, device=device)
        return cls(
            cut=cut,
            windows=windows,
            window_lens=window_lens,
            table=rows,
            spans=spans,
            outputs=floats[: num_sums * head_dim].view(-1, num_heads, head_dim),
            log_sums=floats[num_sums * head_dim :].view(-1, num_heads),
        )

    @property
    def has_merge(self) -> bool:
        """Some request may have more than one."""
        return len(self.outputs) > 0


def cut_splits(context_lens: Tensor, splits: Splits) -> None:
    """Cut a batch: the reference of ops/triton/decode_splits.py.

    Args:
        context_lens: [num_reqs] int32, the query token included; 0 for none.
        splits: for as many requests; table and spans are WRITTEN.
    """
    keys, wanted = splits.cut.keys, splits.cut.wanted
    splits.table.fill_(-1)
    for window, table, spans in zip(splits.windows, splits.table, splits.spans, strict=True):
        low = (context_lens - window).clamp(min=0) if window else torch.zeros_like(context_lens)
        first = low // keys
        tiles = (context_lens + keys - 1) // keys - first
        length = ((tiles.sum() + wanted - 1) // wanted).clamp(min=splits.cut.min_tiles)
        counts = ((tiles + length - 1) // length).clamp(min=1)
        starts = counts.cumsum(0) - counts
        spans.copy_(torch.stack((starts, counts), 1))

        request = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
        index = torch.arange(len(request), device=counts.device) - starts[request]
        first, tiles, count = first[request], tiles[request], counts[request]
        begin = ((first + tiles * index // count) * keys).maximum(low[request])
        end = ((first + tiles * (index + 1) // count) * keys).minimum(context_lens[request])
        table[: len(request)] = torch.stack((request, begin, end, count), 1)
