"""ScheduledBatch to ForwardBatch: all host work in a few numpy calls, then two copies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from chitu_like.attention.base import ForwardBatch, LayerKVCache
from chitu_like.core.batch import SAMPLED_LAST, ScheduledBatch
from chitu_like.ops.upload import upload
from chitu_like.worker.slots import Slots


@dataclass(frozen=True, kw_only=True)
class PaddedInputs:
    """Memory in which a batch is laid out for a recorded step: always at the same address.

    Attributes:
        packed: int64, `length` of its largest batch: the three tensors below come first.
        num_tokens: of the padded batch.
        padding_slot: where the keys and values of tokens go that only pad it.
    """

    packed: Tensor
    num_tokens: int
    padding_slot: int

    @staticmethod
    def length(num_tokens: int, num_reqs: int) -> int:
        """Numbers of a batch, at most."""
        return 3 * num_tokens + 3 * num_reqs

    @property
    def by_token(self) -> Tensor:
        """[3, num_tokens]: input ids, positions and slot mapping of the padded batch."""
        return self.packed[: 3 * self.num_tokens].view(3, -1)


def build_forward_batch(
    batch: ScheduledBatch,
    slots: Slots,
    kv_caches: dict[int, LayerKVCache],
    *,
    block_size: int,
    device: torch.device,
    into: PaddedInputs | None = None,
) -> ForwardBatch:
    """The tensors of a batch that has at least one request.

    Args:
        batch: `slots` has already taken in its rows and blocks.
        slots: block tables are read, and last_sampled where the batch says SAMPLED_LAST.
        kv_caches: handed through.
        block_size: tokens a KV block.
        device: of the tensors.
        into: for at least as many tokens; the batch's tensors are then the leading part of what is
            there, and tokens that pad it follow. None: in new memory, and there are no such tokens.
    """
    who = np.array(batch.slots, np.int64)
    num_tokens = np.array(batch.num_tokens, np.int64)
    num_computed = np.array(batch.num_computed, np.int64)
    input_ids = np.array(batch.token_ids, np.int64)
    ends = np.cumsum(num_tokens)
    request_of = np.repeat(np.arange(len(who)), num_tokens)  # [num_tokens]
    positions = np.arange(len(input_ids)) - (ends - num_tokens - num_computed)[request_of]
    block_ids = slots.block_tables[who[request_of], positions // block_size].astype(np.int64)
    context_lens = num_computed + num_tokens
    max_blocks = -(-int(context_lens.max()) // block_size)
    unknown = np.flatnonzero(input_ids == SAMPLED_LAST)
    by_token = np.zeros((3, len(input_ids) if into is None else into.num_tokens), np.int64)
    if into is not None:
        by_token[2] = into.padding_slot
    by_token[:, : len(input_ids)] = (
        input_ids,
        positions,
        block_ids * block_size + positions % block_size,
    )
    parts = [
        by_token.ravel(),
        (ends - 1)[np.array(batch.samples, np.bool_)],
        unknown,
        who[request_of][unknown],
    ]
    values = np.concatenate(parts)
    packed = upload(values, device, None if into is None else into.packed[: len(values)])
    tokens, logits_indices, at_unknown, slots_of_unknown = packed.split([len(p) for p in parts])
    ids_there, positions_there, mapping_there = tokens.view(by_token.shape)[:, : len(input_ids)]
    tables = slots.block_tables[who, :max_blocks]
    tables_and_lens = upload(
        np.concatenate((tables.ravel(), context_lens.astype(np.int32))), device
    )
    if len(unknown):
        ids_there[at_unknown] = slots.last_sampled[slots_of_unknown]
    return ForwardBatch(
        input_ids=ids_there,
        positions=positions_there,
        slot_mapping=mapping_there,
        block_tables=tables_and_lens[: tables.size].view(tables.shape),
        query_lens=batch.num_tokens,
        context_lens=context_lens.tolist(),
        device_context_lens=tables_and_lens[tables.size :],
        num_decodes=batch.num_decodes,
        logits_indices=logits_indices,
        kv_caches=kv_caches,
    )
