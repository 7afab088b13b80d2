"""What a step of decodes computes with, gathered on the device from what the slots hold.

Three numbers a request come from the host; everything else is there already. So a captured step needs
one small copy, and tokens that only the device knows never cross to the host and back.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from chitu_like.ops.registry import Op


class DecodeInputs(NamedTuple):
    """Tensors of a ForwardBatch of decodes, see attention/base.py.

    Attributes:
        input_ids: [num_reqs] int64.
        positions: [num_reqs] int64.
        slot_mapping: [num_reqs] int64.
        block_tables: [num_reqs, max_blocks] int32.
        context_lens: [num_reqs] int32.
    """

    input_ids: Tensor
    positions: Tensor
    slot_mapping: Tensor
    block_tables: Tensor
    context_lens: Tensor

    @classmethod
    def empty(cls, num_reqs: int, max_blocks: int, device: torch.device) -> DecodeInputs:
        """Room for a step; block tables are zero, so that even their unused part names a block."""
        ids, positions, slots = torch.zeros(3, num_reqs, dtype=torch.int64, device=device)
        lens = torch.zeros(num_reqs, dtype=torch.int32, device=device)
        tables = torch.zeros(num_reqs, max_blocks, dtype=torch.int32, device=device)
        return cls(ids, positions, slots, tables, lens)

    def head(self, num_reqs: int) -> DecodeInputs:
        """The leading `num_reqs` requests, in the same memory."""
        return DecodeInputs(*(part[:num_reqs] for part in self))


def decode_inputs(
    rows: Tensor, tables: Tensor, last_sampled: Tensor, block_size: int, out: DecodeInputs
) -> None:
    """Fill `out` for the decodes that `rows` names.

    Args:
        rows: [3, num_reqs] int32: slot, position of the input token, and the token itself, negative
            for what the slot sampled last. Any stride between the three.
        tables: [num_slots, max_blocks] int32, block ids by slot.
        last_sampled: [num_slots] int64.
        block_size: tokens a KV block.
        out: for as many requests and blocks; MODIFIED. A block table's entries behind the context
            are left as they are or overwritten by what `tables` has there.
    """
    slots, positions, token_ids = rows.long()
    out.input_ids.copy_(torch.where(token_ids < 0, last_sampled[slots], token_ids))
    out.positions.copy_(positions)
    out.context_lens.copy_(positions + 1)
    out.block_tables.copy_(tables[slots])
    block_ids = tables[slots, positions // block_size].long()
    out.slot_mapping.copy_(block_ids * block_size + positions % block_size)


decode_inputs_op = Op("decode_inputs", decode_inputs)
