"""Angles of the rotary position embedding, for every kind of context extension.

Angles are computed for a batch's positions, once a step: no table bounds the context. Every kind
is a function of a token's OWN position, so a request's tokens depend neither on the batch, nor on
how its prompt was cut into chunks, nor on whether its prefix was computed before.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from chitu_like.core.rope_spec import RopeSpec
from chitu_like.ops.rotary import Rotation, rotation_op


class RotaryEmbedding(nn.Module):
    """positions -> Rotation.

    The dynamic kind (NTK) stretches the base with the length reached: the token at position p is
    turned with the base of length p + 1, as transformers does for each generated token. (For a
    prompt longer than the original length transformers uses ONE base, the whole prompt's, and then
    mixes it with those of the generated tokens; its result depends on the chunking.)

    Args:
        spec: kind and numbers.
        dtype: of queries and keys.
        device: where positions are.
        op_impl: kind of implementation to take.
    """

    def __init__(
        self,
        spec: RopeSpec,
        *,
        dtype: torch.dtype,
        device: torch.device,
        op_impl: str = "auto",
    ) -> None:
        super().__init__()
        self._spec = spec
        self._dtype = dtype
        # Not buffers: nothing in a checkpoint may fill them.
        self._inv_freq = inverse_frequencies(spec).to(device)
        self._exponents = exponents_of(spec).to(device)
        self._rotation = rotation_op.resolve(device, dtype, op_impl)

    def forward(self, positions: Tensor) -> Rotation:
        """Angles of tokens at `positions` [num_tokens] int64."""
        spec = self._spec
        freq = self._inv_freq
        if spec.kind == "dynamic":
            freq = dynamic_frequencies(spec, self._exponents, positions)
        return self._rotation(
            positions,
            freq,
            interleaved=spec.interleaved,
            scale=spec.attention_factor,
            dtype=self._dtype,
        )


def inverse_frequencies(spec: RopeSpec) -> Tensor:
    """Radians a position for each pair: [rotary_dim / 2] float32 on the CPU."""
    base = 1.0 / spec.theta ** exponents_of(spec)
    if spec.kind == "linear":
        return base / spec.factor
    if spec.kind == "llama3":
        return _llama3(spec, base)
    if spec.kind == "yarn":
        return _yarn(spec, base)
    return base


def dynamic_frequencies(spec: RopeSpec, exponents: Tensor, positions: Tensor) -> Tensor:
    """Radians a position for each token and pair: [num_tokens, rotary_dim / 2] float32.

    Each is a base to the power of minus its exponent ([rotary_dim / 2], on the positions' device).
    The base is theta up to the original length L, and at length n beyond it
    theta * (factor * n / L - (factor - 1)) ** (rotary_dim / (rotary_dim - 2)).
    """
    original = spec.original_max_position_embeddings
    lengths = (positions + 1).clamp(min=original).float()
    stretch = lengths * (spec.factor / original) - (spec.factor - 1)
    theta = spec.theta * stretch ** (spec.rotary_dim / (spec.rotary_dim - 2))
    return 1.0 / theta.unsqueeze(1) ** exponents


def exponents_of(spec: RopeSpec) -> Tensor:
    """Of each pair: [rotary_dim / 2] float32 on the CPU, from 0 to nearly 1."""
    return torch.arange(0, spec.rotary_dim, 2, dtype=torch.int64).float() / spec.rotary_dim


def _llama3(spec: RopeSpec, base: Tensor) -> Tensor:
    """Waves that fit often into the original context stay, rare ones are stretched by the factor."""
    waves = spec.original_max_position_embeddings * base / (2 * math.pi)
    smooth = (waves - spec.low_freq_factor) / (spec.high_freq_factor - spec.low_freq_factor)
    smooth = smooth.clamp(0, 1)
    return (1 - smooth) * base / spec.factor + smooth * base


def _yarn(spec: RopeSpec, base: Tensor) -> Tensor:
    """A ramp over the components: fast ones stay, slow ones are stretched by the factor."""
    low, high = (_component_of(spec, turns) for turns in (spec.beta_fast, spec.beta_slow))
    if spec.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, spec.rotary_dim - 1)
    width = high - low if high != low else 0.001  # as the reference: avoids dividing by zero
    ramp = (torch.arange(spec.rotary_dim // 2, dtype=torch.float32) - low) / width
    ramp = ramp.clamp(0, 1)
    return base * (1 - ramp) + base / spec.factor * ramp


def _component_of(spec: RopeSpec, turns: float) -> float:
    """Which pair turns `turns` times over the original context (a real number)."""
    original = spec.original_max_position_embeddings
    waves = math.log(original / (turns * 2 * math.pi))
    return spec.rotary_dim * waves / (2 * math.log(spec.theta))
