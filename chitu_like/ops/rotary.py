"""Rotary position embedding: turn each pair of a head's components by an angle (arXiv:2104.09864).

`rotation` computes the angles of a batch once, not once a layer; every layer turns its queries and
keys by them, on a GPU together with what else happens to them (rope_store.py).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from chitu_like.ops.registry import Op


class Rotation(NamedTuple):
    """The angles of a batch's tokens, ready to multiply with.

    Attributes:
        cos: [num_tokens, 1, rotary_dim], each angle's cosine at both components of its pair.
        sin: [num_tokens, 1, rotary_dim], the sine, negative at a pair's first component.
    """

    cos: Tensor
    sin: Tensor


def rotation(
    positions: Tensor, frequencies: Tensor, *, interleaved: bool, scale: float, dtype: torch.dtype
) -> Rotation:
    """Turn positions into what `apply_rotary` multiplies with.

    Args:
        positions: [num_tokens] int64.
        frequencies: radians a position of each pair, float32, contiguous: [rotary_dim / 2], or
            [num_tokens, rotary_dim / 2] where tokens have their own.
        interleaved: pairs are neighbours (0, 1), (2, 3) ...; else (i, i + rotary_dim / 2).
        scale: multiplies cosine and sine (yarn's attention factor).
        dtype: of the queries and keys.
    """
    angles = positions.unsqueeze(1).float() * frequencies  # [num_tokens, rotary_dim / 2]
    cos, sin = (angles.cos() * scale).to(dtype), (angles.sin() * scale).to(dtype)
    if interleaved:
        cos, sin = torch.stack((cos, cos), -1), torch.stack((-sin, sin), -1)
        return Rotation(cos.flatten(1).unsqueeze(1), sin.flatten(1).unsqueeze(1))
    return Rotation(torch.cat((cos, cos), -1).unsqueeze(1), torch.cat((-sin, sin), -1).unsqueeze(1))


def apply_rotary(x: Tensor, angles: Rotation, interleaved: bool) -> Tensor:
    """Rotate the leading rotary_dim components of each head.

    Args:
        x: [num_tokens, num_heads, head_dim], head_dim >= rotary_dim; any strides but the last's;
            its rotated components may be modified: use the result only.
        angles: of these tokens, made with the same `interleaved`.
        interleaved: pairs are neighbours, else halves.

    Returns: shape and dtype of x; x itself where head_dim > rotary_dim.
    """
    cos, sin = angles
    rotary_dim = cos.shape[-1]
    if rotary_dim == x.shape[-1]:
        return _rotate(x, cos, sin, interleaved)
    part = x[..., :rotary_dim]
    part.copy_(_rotate(part, cos, sin, interleaved))
    return x


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    if interleaved:
        partner = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    else:
        partner = torch.roll(x, x.shape[-1] // 2, -1)
    return torch.addcmul(x * cos, partner, sin)


rotation_op = Op("rotation", rotation)
