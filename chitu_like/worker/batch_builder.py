"""ScheduledBatch to ForwardBatch: all host work in a few numpy calls, then two copies."""

from __future__ import annotations

import numpy as np
import torch

from chitu_like.attention.base import ForwardBatch, LayerKVCache
from chitu_like.core.batch import SAMPLED_LAST, ScheduledBatch
from chitu_like.ops.upload import upload
from chitu_like.worker.slots import Slots


def build_forward_batch(
    batch: ScheduledBatch,
    slots: Slots,
    kv_caches: dict[int, LayerKVCache],
    *,
    block_size: int,
    device: torch.device,
) -> ForwardBatch:
    """The tensors of a batch that has at least one request.

    Args:
        batch: `slots` has already taken in its rows and blocks.
        slots: block tables are read, and last_sampled where the batch says SAMPLED_LAST.
        kv_caches: handed through.
        block_size: tokens a KV block.
        device: of the tensors.
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
    parts = [
        input_ids,
        positions,
        block_ids * block_size + positions % block_size,
        (ends - 1)[np.array(batch.samples, np.bool_)],
        unknown,
        who[request_of][unknown],
    ]
    packed = upload(np.concatenate(parts), device).split([len(part) for part in parts])
    tables = slots.block_tables[who, :max_blocks]
    tables_and_lens = upload(
        np.concatenate((tables.ravel(), context_lens.astype(np.int32))), device
    )
    if len(unknown):
        packed[0][packed[4]] = slots.last_sampled[packed[5]]
    return ForwardBatch(
        input_ids=packed[0],
        positions=packed[1],
        slot_mapping=packed[2],
        block_tables=tables_and_lens[: tables.size].view(tables.shape),
        query_lens=batch.num_tokens,
        context_lens=context_lens.tolist(),
        device_context_lens=tables_and_lens[tables.size :],
        num_decodes=batch.num_decodes,
        logits_indices=packed[3],
        kv_caches=kv_caches,
    )
