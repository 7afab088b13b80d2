"""The table of what benchmark_ops measures: a function and a line each.

Bytes count every input read once and every output written once. Weights, keys and values come from
memory in service; activations of a decode were written a moment before and stand in the cache.
"""

from __future__ import annotations

import torch

from chitu_like.bench.attention_case import ATTENTION, UNEVEN_ATTENTION
from chitu_like.bench.device_timing import Call
from chitu_like.bench.op_case import Case, Describe, OpWork, Setting, Work, op_case
from chitu_like.core.rope_spec import RopeSpec
from chitu_like.ops.activation import act_and_mul_op
from chitu_like.ops.decode_inputs import DecodeInputs, decode_inputs_op
from chitu_like.ops.draw import draw_tokens_op, pack_params
from chitu_like.ops.embedding import embed_rms_norm_op
from chitu_like.ops.kv_store import kv_store_op
from chitu_like.ops.linear import PlainLinear, make_linear_kernel
from chitu_like.ops.norm import add_rms_norm_op, rms_norm_op
from chitu_like.ops.rope_store import HeadNorms, qk_norm_rope_store_op
from chitu_like.ops.rotary import rotation, rotation_op

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


def _embed_rms_norm(at: Setting) -> OpWork:
    hidden, vocab_size = at.spec.hidden_size, at.spec.vocab_size
    table = at.random(vocab_size, hidden)

    def arguments() -> tuple[object, ...]:
        ids = torch.randint(vocab_size, (at.num_tokens,), device=at.device)
        return ids, table, at.random(hidden), EPS

    return OpWork(arguments=arguments, num_bytes=at.bytes_of((3 * at.num_tokens + 1) * hidden))


def _rotation(at: Setting) -> OpWork:
    rope = _rope_of(at)
    return OpWork(
        arguments=lambda: (
            torch.randint(at.context, (at.num_tokens,), device=at.device),
            torch.rand(rope.rotary_dim // 2, device=at.device),
        ),
        num_bytes=at.bytes_of(2 * at.num_tokens * rope.rotary_dim) + 8 * at.num_tokens,
        options={"interleaved": rope.interleaved, "scale": 1.0, "dtype": at.dtype},
    )


def _qk_norm_rope_store(at: Setting) -> OpWork:
    rope, dim = _rope_of(at), at.spec.head_dim
    qkv_size = at.q_size + 2 * at.kv_size

    def arguments() -> tuple[object, ...]:
        norms = HeadNorms(at.random(dim), at.random(dim), EPS) if at.spec.qk_norm else None
        positions = torch.randint(at.context, (at.num_tokens,), device=at.device)
        frequencies = torch.rand(rope.rotary_dim // 2, device=at.device)
        turns = rotation(
            positions, frequencies, interleaved=rope.interleaved, scale=1.0, dtype=at.dtype
        )
        return at.random(at.num_tokens, qkv_size), norms, turns, rope.interleaved, *_slots(at)

    turned = 2 * rope.rotary_dim
    return OpWork(
        arguments=arguments, num_bytes=at.bytes_of(at.num_tokens * (2 * qkv_size + turned))
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


def _decode_inputs(at: Setting) -> OpWork:
    max_blocks, num_reqs = -(-at.context // at.block_size), at.num_reqs

    def arguments() -> tuple[object, ...]:
        slots = torch.arange(num_reqs)
        rows = torch.stack((slots, slots % at.context, torch.full_like(slots, -1)))
        tables = torch.zeros(num_reqs, max_blocks, dtype=torch.int32, device=at.device)
        last_sampled = torch.zeros(num_reqs, dtype=torch.int64, device=at.device)
        out = DecodeInputs.empty(num_reqs, max_blocks, at.device)
        return rows.to(at.device, torch.int32), tables, last_sampled, at.block_size, out

    return OpWork(arguments=arguments, num_bytes=num_reqs * (8 * max_blocks + 48))


def _draw(
    *, temperature: float, top_k: int = 0, top_p: float = 1.0, is_flat: bool = False
) -> Describe:
    """Sampling with the same parameters in every row; greedy at temperature 0."""
    row = pack_params(seed=7, temperature=temperature, top_k=top_k, top_p=top_p, min_p=0.0)

    def describe(at: Setting) -> OpWork:
        def arguments() -> tuple[object, ...]:
            slots = torch.arange(at.num_reqs, device=at.device)
            params = torch.from_numpy(row).to(at.device).repeat(at.num_reqs, 1)
            logits = at.random(at.num_reqs, at.spec.vocab_size)
            if not is_flat:
                _raise_peaks(logits)
            return logits, params, slots, slots.clone(), torch.zeros_like(slots)

        return OpWork(
            arguments=arguments,
            num_bytes=at.bytes_of(at.num_reqs * at.spec.vocab_size),
            reference_waits=True,
        )

    return describe


def _raise_peaks(logits: torch.Tensor) -> None:
    """Normal logits become like a trained model's: some tens of tokens hold most probability."""
    vocab_size = logits.shape[1]
    num_peaks = min(64, vocab_size)
    peaks = torch.arange(num_peaks, device=logits.device) * (vocab_size // num_peaks)
    logits *= 2
    logits[:, peaks] += torch.linspace(20, 8, num_peaks, device=logits.device).to(logits.dtype)


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


def _rope_of(at: Setting) -> RopeSpec:
    assert at.spec.rope is not None, f"{at.model} does not rotate"
    return at.spec.rope


def _rotates(at: Setting) -> bool:
    return at.spec.rope is not None


def _is_gated(at: Setting) -> bool:
    return at.spec.opt is None


def _is_decode(at: Setting) -> bool:
    return at.is_decode


CASES: tuple[Case, ...] = (
    op_case(rms_norm_op, _rms_norm),
    op_case(add_rms_norm_op, _add_rms_norm),
    op_case(embed_rms_norm_op, _embed_rms_norm, applies=_is_gated),
    op_case(act_and_mul_op, _act_and_mul, applies=_is_gated),
    op_case(rotation_op, _rotation, applies=_rotates),
    op_case(qk_norm_rope_store_op, _qk_norm_rope_store, applies=_rotates),
    op_case(kv_store_op, _kv_store),
    op_case(decode_inputs_op, _decode_inputs, applies=_is_decode),
    *(
        op_case(draw_tokens_op, describe, name=name, applies=_is_decode)
        for name, describe in (
            ("draw_greedy", _draw(temperature=0.0)),
            ("draw", _draw(temperature=1.0)),
            ("draw_top_k", _draw(temperature=1.0, top_k=50)),
            ("draw_top_p", _draw(temperature=1.0, top_p=0.95)),
            ("draw_top_p_flat", _draw(temperature=1.0, top_p=0.95, is_flat=True)),
        )
    ),
    *(map(_linear, ("qkv_proj", "o_proj", "gate_up_proj", "down_proj", "lm_head"))),
    ATTENTION,
    UNEVEN_ATTENTION,
)
