"""Attention of one layer by each backend: requests of one length or of many, blocks in random order."""

from __future__ import annotations

import random
from dataclasses import replace

import torch
from torch import Tensor

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
from chitu_like.worker.padded_decodes import LONGEST_FIRST

DECODE_ONLY = ("xqa",)
UNEVEN = 16  # times as long is the longest context as the shortest
SEED = 5  # of the lengths: every backend and every run has the same


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


def context_lens(at: Setting) -> list[int]:
    """Of each request; see Setting."""
    if at.shortest is None:
        return [at.context] * at.num_reqs
    draw = random.Random(SEED)
    return [draw.randint(at.shortest, at.context) for _ in range(at.num_reqs)]


def attention_kinds(at: Setting) -> list[str]:
    """The installed backends that serve a setting."""
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

    lens = batch.context_lens
    num_pairs = sum(sum(range(n - at.query_len + 1, n + 1)) for n in lens)
    kv_bytes = at.bytes_of(2 * sum(lens) * at.kv_size)
    return Work(
        fresh=fresh,
        num_bytes=kv_bytes + at.bytes_of(2 * at.num_tokens * at.q_size),
        num_flops=4 * num_pairs * at.q_size,
        streamed_bytes=kv_bytes,
        in_graph=in_graph,
    )


def _attention(at: Setting, kind: str) -> Work:
    return attention_work(at, attention_backends.get(kind)(attention_spec(at)))


def _uneven(at: Setting) -> Setting:
    return replace(at, shortest=-(-at.context // UNEVEN))


def _num_blocks(at: Setting) -> list[int]:
    return [-(-length // at.block_size) for length in context_lens(at)]


def _random_cache(at: Setting) -> LayerKVCache:
    num_blocks = sum(_num_blocks(at))
    shape = (num_blocks, at.block_size, at.spec.num_kv_heads, at.spec.head_dim)
    return LayerKVCache(k=at.random(*shape), v=at.random(*shape))


def _attention_batch(at: Setting) -> ForwardBatch:
    lens, num_blocks = context_lens(at), _num_blocks(at)
    # As in service, a row is as wide as the longest context; behind a request's own, block 0.
    tables = torch.zeros(at.num_reqs, max(num_blocks), dtype=torch.int32)
    order = torch.randperm(sum(num_blocks), dtype=torch.int32)
    for row, count in zip(tables, num_blocks, strict=True):
        row[:count], order = order[:count], order[count:]
    unused = torch.zeros(at.num_tokens, dtype=torch.int64, device=at.device)
    return ForwardBatch(
        input_ids=unused,
        positions=unused,
        slot_mapping=unused,
        block_tables=tables.to(at.device),
        query_lens=[at.query_len] * at.num_reqs,
        context_lens=lens,
        device_context_lens=torch.tensor(lens, dtype=torch.int32, device=at.device),
        num_decodes=at.num_reqs if at.is_decode else 0,
        decode_order=_decode_order(at),
        logits_indices=unused[:0],
        kv_caches={},
    )


def _decode_order(at: Setting) -> Tensor | None:
    """As recorded steps have it (worker/padded_decodes.py)."""
    if not at.is_decode or at.num_reqs < LONGEST_FIRST:
        return None
    lens = torch.tensor(context_lens(at), device=at.device)
    return lens.argsort(descending=True, stable=True).int()


ATTENTION = Case(name="attention", kinds=attention_kinds, make=_attention, needs_context=True)
UNEVEN_ATTENTION = Case(
    name="attention_uneven",
    kinds=lambda at: attention_kinds(at) if at.is_decode and at.num_reqs > 1 else [],
    make=lambda at, kind: _attention(_uneven(at), kind),
    needs_context=True,
)
"""Of decodes from a sixteenth of the context up to all of it."""
