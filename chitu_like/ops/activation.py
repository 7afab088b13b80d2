"""Activations of the MLP, alone or times the gate's partner."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from chitu_like.ops.registry import Op


def _gelu_fast(x: Tensor) -> Tensor:
    """gelu_fast of transformers: tanh form with rounded constants."""
    return 0.5 * x * (1.0 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x)))


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_fast": _gelu_fast,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
}
"""By the name config.json gives them (core/model_spec.py lists the same); none modifies its input."""


def act_and_mul(x: Tensor, activation: str) -> Tensor:
    """activation(gate) * up; with silu it is SwiGLU (Shazeer 2020, arXiv:2002.05202).

    Args:
        x: [num_tokens, 2 * intermediate_size]: gate, then up. Not modified.
        activation: a key of ACTIVATIONS.

    Returns: [num_tokens, intermediate_size], dtype of x.
    """
    gate, up = x.chunk(2, -1)
    return ACTIVATIONS[activation](gate).mul_(up)


act_and_mul_op = Op("act_and_mul", act_and_mul)
