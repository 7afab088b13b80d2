"""Block tables as compressed rows, which is how some attention kernels take them.

The rows of a table are padded to one length; here they stand one behind the other. Everything is
computed where the tables are, from lengths that are there too, so that it can be captured and nobody
waits for a length to reach the host.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from chitu_like.ops.registry import Op


class FlatTables(NamedTuple):
    """The blocks of a batch's requests.

    Attributes:
        indptr: [num_reqs + 1] int32: request i has the blocks indices[indptr[i] : indptr[i + 1]].
        indices: [room] int32, block ids; anything behind the last request's.
        last_block_lens: [num_reqs] int32: tokens in the last block of each, 1 at least.
    """

    indptr: Tensor
    indices: Tensor
    last_block_lens: Tensor

    @classmethod
    def empty(cls, num_reqs: int, num_indices: int, device: torch.device) -> FlatTables:
        """Room for so many requests, and so many blocks of all together."""
        indptr, indices, last_block_lens = (
            torch.zeros(size, dtype=torch.int32, device=device)
            for size in (num_reqs + 1, num_indices, num_reqs)
        )
        return cls(indptr, indices, last_block_lens)

    def head(self, num_reqs: int) -> FlatTables:
        """For the leading requests alone, in the same memory."""
        return FlatTables(
            self.indptr[: num_reqs + 1], self.indices, self.last_block_lens[:num_reqs]
        )


def flatten_tables(
    block_tables: Tensor, context_lens: Tensor, block_size: int, out: FlatTables
) -> None:
    """Put the used parts of `block_tables` one behind the other.

    Args:
        block_tables: [num_reqs, max_blocks] int32, block ids in order, then anything.
        context_lens: [num_reqs] int32, tokens of each request, 1 at least.
        block_size: tokens a block.
        out: for as many requests, and room for the blocks of all; WRITTEN.
    """
    num_blocks = (context_lens + (block_size - 1)) // block_size
    ends = num_blocks.cumsum(0)
    out.indptr[0] = 0
    out.indptr[1:] = ends
    out.last_block_lens.copy_(context_lens - (num_blocks - 1) * block_size)
    column = torch.arange(block_tables.shape[1], device=block_tables.device)
    at = (ends - num_blocks).unsqueeze(1) + column
    # What is behind a row's end goes to a place of its own behind them all.
    at = at.where(column < num_blocks.unsqueeze(1), len(out.indices))
    padded = torch.cat((out.indices, out.indices.new_zeros(1)))
    out.indices.copy_(padded.scatter_(0, at.flatten(), block_tables.flatten())[:-1])


flatten_tables_op = Op("flatten_tables", flatten_tables)
