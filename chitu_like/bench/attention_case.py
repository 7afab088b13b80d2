"""Attention of one layer by each backend: requests of one length, their blocks in random order."""

from __future__ import annotations

import torch

from chitu_like.attention.base import (
    AttentionBackend,
    AttentionSpec,
    ForwardBatch,
    GraphBackend,
    LayerKVCache,
    attention_backends,
)
from chitu_like.bench.device_timing import Call
from chitu_like.bench.op_case import Case, Setting, Work
from chitu_like.core.errors import UnsupportedError

DECODE_ONLY = ("xqa",)


def attention_spec(at: Setting) -> AttentionSpec:
    """What a backend must know of the setting's model."""
    return AttentionSpec(
        num_heads=at.spec.num_heads,
        num_kv_heads=at.spec.num_kv_heads,
        head_dim=at.spec.head_dim,
        windows=(None,),
        block_size=at.block_size,
        dtype=at.dtype,
        device=at.device,
        max_reqs=at.num_reqs,
    )


def _attention_kinds(at: Setting) -> list[str]:
    spec = attention_spec(at)
    found = []
    for name in attention_backends.names():
        backend = attention_backends.get(name)
        is_slow = name == "ref" and at.device.type == "cuda"  # a loop over requests
        is_other_phase = name in DECODE_ONLY and not at.is_decode
        if is_slow or is_other_phase or backend.supports(spec) is not None:
            continue
        try:
            backend(spec)
        except UnsupportedError:  # its package is not installed
            continue
        found.append(name)
    return found


def attention_work(at: Setting, backend: AttentionBackend) -> Work:
    """One layer's attention at a setting by a backend made for `attention_spec(at)`."""
    spec = attention_spec(at)
    cache = _random_cache(at)
    batch = _attention_batch(at)
    batch.kv_caches[0] = cache
    in_graph = at.is_decode and isinstance(backend, GraphBackend) and backend.supports_cuda_graph
    if in_graph and isinstance(backend, GraphBackend):
        metadata = backend.plan_capture(batch)
        backend.replan(metadata, batch)
        backend.prepare(metadata)  # once a step, whatever the number of layers
    else:
        metadata = backend.plan(batch)

    def fresh() -> Call:
        own = _random_cache(at)
        q = at.random(at.num_tokens, spec.num_heads, spec.head_dim)
        scale = spec.head_dim**-0.5
        return lambda: backend.run(q, own, metadata, scale=scale, window=None)

    num_pairs = at.num_reqs * sum(range(at.context - at.query_len + 1, at.context + 1))
    kv_bytes = at.bytes_of(2 * at.num_reqs * at.context * at.kv_size)
    return Work(
        fresh=fresh,
        num_bytes=kv_bytes + at.bytes_of(2 * at.num_tokens * at.q_size),
        num_flops=4 * num_pairs * at.q_size,
        streamed_bytes=kv_bytes,
        in_graph=in_graph,
    )


def _attention(at: Setting, kind: str) -> Work:
    return attention_work(at, attention_backends.get(kind)(attention_spec(at)))


def _random_cache(at: Setting) -> LayerKVCache:
    num_blocks = at.num_reqs * -(-at.context // at.block_size)
    shape = (num_blocks, at.block_size, at.spec.num_kv_heads, at.spec.head_dim)
    return LayerKVCache(k=at.random(*shape), v=at.random(*shape))


def _attention_batch(at: Setting) -> ForwardBatch:
    """Requests of one length, their blocks in random order."""
    num_blocks = -(-at.context // at.block_size)
    order = torch.randperm(at.num_reqs * num_blocks, device=at.device)
    unused = torch.zeros(at.num_tokens, dtype=torch.int64, device=at.device)
    context_lens = [at.context] * at.num_reqs
    return ForwardBatch(
        input_ids=unused,
        positions=unused,
        slot_mapping=unused,
        block_tables=order.to(torch.int32).view(at.num_reqs, num_blocks),
        query_lens=[at.query_len] * at.num_reqs,
        context_lens=context_lens,
        device_context_lens=torch.tensor(context_lens, dtype=torch.int32, device=at.device),
        num_decodes=at.num_reqs if at.is_decode else 0,
        logits_indices=unused[:0],
        kv_caches={},
    )


ATTENTION = Case(name="attention", kinds=_attention_kinds, make=_attention, needs_context=True)
