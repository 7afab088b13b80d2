"""The table of what benchmark_ops measures: a function and a line each.

Bytes count every input read once and every output written once. Weights, keys and values come from
memory in service; activations of a decode were written a moment before and stand in the cache.
"""

from __future__ import annotations

import torch

from chitu_like.attention.base import (
    AttentionSpec,
    ForwardBatch,
    GraphBackend,
    LayerKVCache,
    attention_backends,
)
from chitu_like.bench.device_timing import Call
from chitu_like.bench.op_case import Case, OpWork, Setting, Work, op_case
from chitu_like.core.errors import UnsupportedError
from chitu_like.ops.activation import act_and_mul_op
from chitu_like.ops.kv_store import kv_store_op
from chitu_like.ops.linear import PlainLinear, make_linear_kernel
from chitu_like.ops.norm import add_rms_norm_op, rms_norm_op
from chitu_like.ops.rope_store import qk_norm_rope_store_op
from chitu_like.ops.rotary import rotation

EPS = 1e-5


def _rms_norm(at: Setting) -> OpWork:
    hidden = at.spec.hidden_size
    return OpWork(
        arguments=lambda: (at.random(at.num_tokens, hidden), at.random(hidden), EPS),
        num_bytes=at.bytes_of((2 * at.num_tokens + 1) * hidden),
    )


def _add_rms_norm(at: Setting) -> OpWork:
    hidden = at.spec.hidden_size
    shape = (at.num_tokens, hidden)
    return OpWork(
        arguments=lambda: (at.random(*shape), at.random(*shape), at.random(hidden), EPS),
        num_bytes=at.bytes_of((4 * at.num_tokens + 1) * hidden),
    )


def _act_and_mul(at: Setting) -> OpWork:
    inner = at.spec.intermediate_size
    return OpWork(
        arguments=lambda: (at.random(at.num_tokens, 2 * inner), at.spec.hidden_act),
        num_bytes=at.bytes_of(3 * at.num_tokens * inner),
    )


def _rope_store(at: Setting) -> OpWork:
    """Without norms of the heads, which add next to nothing to what is read."""
    assert at.spec.rope is not None, "this case is for models that rotate"
    rotary_dim, interleaved = at.spec.rope.rotary_dim, at.spec.rope.interleaved
    qkv_size = at.q_size + 2 * at.kv_size

    def arguments() -> tuple[object, ...]:
        positions = torch.randint(at.context, (at.num_tokens,), device=at.device)
        frequencies = torch.rand(rotary_dim // 2, device=at.device)
        turns = rotation(positions, frequencies, interleaved=interleaved, scale=1.0, dtype=at.dtype)
        return at.random(at.num_tokens, qkv_size), None, turns, interleaved, *_slots(at)

    return OpWork(
        arguments=arguments, num_bytes=at.bytes_of(at.num_tokens * (2 * qkv_size + 2 * rotary_dim))
    )


def _kv_store(at: Setting) -> OpWork:
    heads = (at.spec.num_kv_heads, at.spec.head_dim)

    def arguments() -> tuple[object, ...]:
        k, v = at.random(at.num_tokens, *heads), at.random(at.num_tokens, *heads)
        return (k, v, *_slots(at))

    return OpWork(arguments=arguments, num_bytes=at.bytes_of(4 * at.num_tokens * at.kv_size))


def _slots(at: Setting) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Caches for the step's tokens alone, and slots in random order."""
    num_blocks = -(-at.num_tokens // at.block_size)
    shape = (num_blocks, at.block_size, at.spec.num_kv_heads, at.spec.head_dim)
    slots = torch.randperm(num_blocks * at.block_size, device=at.device)[: at.num_tokens]
    return at.random(*shape), at.random(*shape), slots


def _linear(name: str) -> Case:
    """One of the model's matrices; `auto` is what the service picks, torch the plain product."""

    def make(at: Setting, kind: str) -> Work:
        inner, outer = _matrix(at, name)
        build = PlainLinear if kind == "torch" else make_linear_kernel

        def fresh() -> Call:
            kernel = build(at.random(outer, inner).mul_(inner**-0.5), None)
            x = at.random(at.num_tokens, inner)
            return lambda: kernel(x)

        return Work(
            fresh=fresh,
            num_bytes=at.bytes_of(inner * outer + at.num_tokens * (inner + outer)),
            num_flops=2 * at.num_tokens * inner * outer,
            streamed_bytes=at.bytes_of(inner * outer),
        )

    def kinds(at: Setting) -> list[str]:
        # A prompt's logits are taken of its last token alone.
        return [] if name == "lm_head" and not at.is_decode else ["auto", "torch"]

    return Case(name=name, kinds=kinds, make=make)


def _matrix(at: Setting, name: str) -> tuple[int, int]:
    """in_features and out_features."""
    hidden, inner = at.spec.hidden_size, at.spec.intermediate_size
    num_up = 1 if at.spec.opt else 2
    return {
        "qkv_proj": (hidden, at.q_size + 2 * at.kv_size),
        "o_proj": (at.q_size, hidden),
        "gate_up_proj": (hidden, num_up * inner),
        "down_proj": (inner, hidden),
        "lm_head": (hidden, at.spec.vocab_size),
    }[name]


def _attention_spec(at: Setting) -> AttentionSpec:
    return AttentionSpec(
        num_heads=at.spec.num_heads,
        num_kv_heads=at.spec.num_kv_heads,
        head_dim=at.spec.head_dim,
        windows=(None,),
        block_size=at.block_size,
        dtype=at.dtype,
        device=at.device,
    )


def _attention_kinds(at: Setting) -> list[str]:
    spec = _attention_spec(at)
    found = []
    for name in attention_backends.names():
        backend = attention_backends.get(name)
        is_slow = name == "ref" and at.device.type == "cuda"  # a loop over requests
        if is_slow or backend.supports(spec) is not None:
            continue
        try:
            backend(spec)
        except UnsupportedError:  # its package is not installed
            continue
        found.append(name)
    return found


def _attention(at: Setting, kind: str) -> Work:
    spec = _attention_spec(at)
    backend = attention_backends.get(kind)(spec)
    cache = _random_cache(at)
    batch = _attention_batch(at)
    batch.kv_caches[0] = cache
    in_graph = at.is_decode and isinstance(backend, GraphBackend) and backend.supports_cuda_graph
    if in_graph and isinstance(backend, GraphBackend):
        metadata = backend.plan_capture(batch)
        backend.replan(metadata, batch)
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


def _is_gated(at: Setting) -> bool:
    return at.spec.opt is None


CASES: tuple[Case, ...] = (
    op_case(rms_norm_op, _rms_norm),
    op_case(add_rms_norm_op, _add_rms_norm),
    op_case(act_and_mul_op, _act_and_mul, applies=_is_gated),
    op_case(qk_norm_rope_store_op, _rope_store, applies=lambda at: at.spec.rope is not None),
    op_case(kv_store_op, _kv_store),
    *(map(_linear, ("qkv_proj", "o_proj", "gate_up_proj", "down_proj", "lm_head"))),
    Case(name="attention", kinds=_attention_kinds, make=_attention, needs_context=True),
)
