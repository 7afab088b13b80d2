"""Linear layers on the CPU with the weight in oneDNN's own order.

oneDNN multiplies by blocks and, given a plain weight, walks through it in strides (or copies it
over, block by block, in every call). Reordered once at load, the weight is read front to back.
Measured with torch 2.13 on two Zen 5 cores (AVX512-BF16), bfloat16, medians, F.linear / packed:

    tokens   9728x896 (gate_up)      896x4864 (down)         151936x896 (head)
    1        0.92 / 0.30 ms          0.48 / 0.17 ms          11.8 / 4.1 ms (66 GB/s)
    16       1.29 / 0.57 ms          0.53 / 0.29 ms          17.4 / 8.3 ms
    512      12.4 / 10.7 ms          5.9 / 5.3 ms

float32 gains 2.5 times at every size, but for matrices under 512x512 at one token, where oneDNN's
12 us a call show.

The operators are private to torch (its compiler's back end calls them), so each dtype is tried once
against F.linear, and where that fails the plain weight stays.
"""

from __future__ import annotations

import functools
import logging

import torch
import torch.nn.functional as F
from torch import Tensor

logger = logging.getLogger(__name__)

# Tokens a call that the order of blocks is chosen for. bfloat16 does not care; float32 at 16 tokens
# was 1.5 times as fast with 16 as with 1, and no slower at one token.
_TYPICAL_TOKENS = 16


class PackedLinear:
    """A linear layer whose weight is in oneDNN's order; see ops/linear.py, LinearKernel.

    Args:
        weight: [out_features, in_features] that `can_pack`; not modified, and not kept.
        bias: [out_features] of the same dtype, or None; kept.
    """

    reads_weight = False
    __slots__ = ("_bias", "_packed")

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._packed = _pack(weight)
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        """See LinearKernel. Takes any leading dimensions and any strides."""
        return _multiply(x, self._packed, self._bias)

    def unpacked(self) -> Tensor:
        """The plain weight again, [out_features, in_features]: a copy."""
        return self._packed.to_dense()


def can_pack(weight: Tensor) -> bool:
    """Whether PackedLinear takes `weight` and is right and available on this machine."""
    if weight.device.type != "cpu" or weight.dim() != 2 or weight.numel() == 0:
        return False
    return weight.dtype.is_floating_point and is_packing_right(weight.dtype)


@functools.cache
def is_packing_right(dtype: torch.dtype) -> bool:
    """Whether this torch and CPU pack weights of float `dtype` and agree with F.linear; tried once."""
    generator = torch.Generator().manual_seed(0)
    weight, x, bias = (
        torch.randn(shape, generator=generator).to(dtype) for shape in ((48, 80), (3, 80), (48,))
    )
    try:
        found = _multiply(x, _pack(weight), bias)
    except (AttributeError, RuntimeError, TypeError) as error:
        # No such operator, another signature, or no instruction for this dtype.
        reason = str(error).splitlines()[0][:160]
        logger.info("linear layers in %s stay plain on this CPU: %s", dtype, reason)
        return False
    # Sums of 80 products differ by their order alone: a few roundings of the largest sum.
    expected = F.linear(x, weight, bias)
    tolerance = 4 * torch.finfo(dtype).eps * float(expected.abs().max())
    is_right = bool((found - expected).abs().max() <= tolerance)
    if not is_right:
        logger.warning("linear layers in %s stay plain: oneDNN's packed product is wrong", dtype)
    return is_right


def _pack(weight: Tensor) -> Tensor:
    plain = weight.detach().contiguous()
    return torch.ops.mkldnn._reorder_linear_weight(plain, _TYPICAL_TOKENS)


def _multiply(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], None)
