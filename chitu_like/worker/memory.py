"""How much memory the KV cache may have: what the device holds, less what everything else takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from chitu_like.core.errors import CapacityError
from chitu_like.core.model_spec import ModelSpec
from chitu_like.kvcache.spec import KVCacheSpec

GIB = 1 << 30
CPU_KV_BYTES = 4 * GIB
"""Enough for hundreds of thousands of tokens of a model that a CPU can serve. A host has other
work than ours, so a service started without a word about memory does not plan for all of it."""

SAMPLING_BYTES = 42
"""For each logit, a little more than measured: 5 of token counts, and what penalties, or sorting and
noise, make of the logits: float32 tensors and their masks."""


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """One rank's memory, in bytes.

    Attributes:
        total_bytes: of the device; on a CPU what could be had when the weights were loaded, and
            the weights.
        other_bytes: taken by other processes and by the runtime; not ours to plan with.
        weight_bytes: of the loaded model.
        activation_bytes: the most that a step takes beside weights and cache.
        graph_bytes: recorded steps.
        kv_bytes: what the KV blocks take.
        bytes_per_block: keys and values of one block, all layers.
        num_blocks: KV blocks; other ranks may have room for fewer.
        reason: what bounded num_blocks, in a few words.
    """

    total_bytes: int
    other_bytes: int
    weight_bytes: int
    activation_bytes: int
    graph_bytes: int
    kv_bytes: int
    bytes_per_block: int
    num_blocks: int
    reason: str


def plan_blocks(
    spec: KVCacheSpec,
    *,
    total_bytes: int,
    other_bytes: int,
    weight_bytes: int,
    activation_bytes: int,
    graph_bytes: int,
    memory_utilization: float,
    kv_limit_bytes: int | None = None,
    num_blocks: int | None = None,
) -> MemoryPlan:
    """Divide a device's memory.

    Args:
        spec: what a block takes.
        total_bytes: see MemoryPlan, like the following three.
        other_bytes: see MemoryPlan.
        weight_bytes: see MemoryPlan.
        activation_bytes: see MemoryPlan.
        graph_bytes: see MemoryPlan.
        memory_utilization: share of total_bytes that all of it together may take.
        kv_limit_bytes: the cache takes no more, whatever is there.
        num_blocks: fixes the pool, where the user did.

    Raises: CapacityError where not one block fits, or not as many as the user fixed.
    """
    taken = other_bytes + weight_bytes + activation_bytes + graph_bytes
    room = int(total_bytes * memory_utilization) - taken
    reason = f"{memory_utilization:.0%} of {_gib(total_bytes)}, less {_gib(taken)} for the rest"
    if num_blocks is None:
        if kv_limit_bytes is not None and kv_limit_bytes < room:
            room, reason = kv_limit_bytes, f"{_gib(kv_limit_bytes)} are enough on a cpu"
        fitting = max(room, 0) // spec.bytes_per_block
    else:
        # The user may go beyond the share that is planned for, never beyond the memory itself.
        fitting = max(total_bytes - taken, 0) // spec.bytes_per_block
        reason = "fixed by infer.num_blocks"
    if fitting < (1 if num_blocks is None else num_blocks):
        wanted = "one KV block" if num_blocks is None else f"infer.num_blocks={num_blocks}"
        raise CapacityError(
            f"no room for {wanted} ({_gib((num_blocks or 1) * spec.bytes_per_block)}): of "
            f"{_gib(total_bytes)} the weights take {_gib(weight_bytes)}, activations "
            f"{_gib(activation_bytes)}, recorded steps {_gib(graph_bytes)}, other users "
            f"{_gib(other_bytes)}: raise "
            "infer.memory_utilization, lower scheduler.max_num_batched_tokens or infer.num_blocks, "
            "cut the model for more ranks (infer.tp_size, infer.pp_size), or take a smaller one"
        )
    blocks = fitting if num_blocks is None else num_blocks
    return MemoryPlan(
        total_bytes=total_bytes,
        other_bytes=other_bytes,
        weight_bytes=weight_bytes,
        activation_bytes=activation_bytes,
        graph_bytes=graph_bytes,
        kv_bytes=blocks * spec.bytes_per_block,
        bytes_per_block=spec.bytes_per_block,
        num_blocks=blocks,
        reason=reason,
    )


def cpu_kv_limit(spec: KVCacheSpec, *, max_reqs: int, max_seq_len: int) -> int:
    """Bytes that the KV cache of a CPU takes at most: more could never be full, or is enough."""
    return min(CPU_KV_BYTES, max_reqs * spec.blocks_for(max_seq_len) * spec.bytes_per_block)


def estimate_activation_bytes(
    model: ModelSpec, *, dtype: torch.dtype, num_tokens: int, num_samples: int
) -> int:
    """A bound on what a step of `num_tokens` takes, from shapes alone: for CPUs, where nothing measures.

    One layer is alive at a time: the residual, its norm and the layer's output; queries, keys,
    values and the attention's output; the MLP's two inner tensors and their product. Beside the logits
    in the model's dtype come SAMPLING_BYTES, as if every request wanted all that there is.
    """
    heads = 2 * model.num_heads + 2 * model.num_kv_heads
    per_token = 4 * model.hidden_size + heads * model.head_dim + 3 * model.intermediate_size
    per_sample = model.vocab_size * (dtype.itemsize + SAMPLING_BYTES)
    return num_tokens * per_token * dtype.itemsize + num_samples * per_sample


def free_cuda_bytes(device: torch.device) -> tuple[int, int]:
    """(total, taken by others) of a CUDA device: what our allocator does not hold is others'."""
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return total, total - free - torch.cuda.memory_reserved(device)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.2f} GiB"
