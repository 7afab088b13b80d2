"""FusedDecode with the skinny kernel itself; test_fused_decode.py runs this in the interpreter."""

import pytest
import torch
from layers.test_fused_decode import NUM_TOKENS, TinyLayer, check_two_layers

from chitu_like.ops.linear import skinny_kernel
from chitu_like.ops.triton.paged_attention import is_interpreted

DEVICE = torch.device("cpu" if is_interpreted() else "cuda")


@pytest.mark.parametrize("has_bias", [False, True], ids=["no bias", "bias"])
def test_fused_layers_compute_what_the_ordinary_ones_do(has_bias: bool) -> None:
    layers = [TinyLayer(torch.float32, DEVICE, has_bias=has_bias) for _ in range(2)]
    check_two_layers(layers, NUM_TOKENS, skinny_kernel)
