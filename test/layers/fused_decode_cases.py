"""FusedDecode with the skinny kernel itself; test_fused_decode.py runs this in the interpreter.

On a CUDA device test_kernels.py runs it compiled, and more.
"""

from dataclasses import replace

import pytest
import torch
from layers.test_fused_decode import HIDDEN, NUM_TOKENS, TILE, TinyLayer, TwoLayers
from tolerance import assert_op_close

from chitu_like.ops.linear import skinny_kernel
from chitu_like.ops.linear_tiles import SkinnyTile
from chitu_like.ops.triton.paged_attention import is_interpreted

DEVICE = torch.device("cpu" if is_interpreted() else "cuda")
DOT = SkinnyTile(rows=16, columns=16, splits=2, num_warps=4, num_stages=2, uses_dot=True)
EARLY = [replace(tile, starts_early=True, prefetch=64) for tile in (TILE, DOT)]


def two_layers(num_tokens: int, tile: SkinnyTile, *, has_bias: bool) -> TwoLayers:
    layers = [TinyLayer(torch.float32, DEVICE, has_bias=has_bias) for _ in range(2)]
    return TwoLayers(layers, num_tokens, skinny_kernel, tile)


@pytest.mark.parametrize("has_bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("num_tokens", [NUM_TOKENS, 20])
def test_fused_layers_compute_what_the_ordinary_ones_do(num_tokens: int, has_bias: bool) -> None:
    tile = TILE if TILE.serves(num_tokens) else DOT
    layers = two_layers(num_tokens, tile, has_bias=has_bias)
    layers.check(torch.randn(num_tokens, HIDDEN, device=DEVICE))


@pytest.mark.gpu
@pytest.mark.parametrize("tile", EARLY, ids=["plain", "dot"])
def test_layers_that_start_early_are_replayed_in_a_graph(tile: SkinnyTile) -> None:
    """Ordinary kernels between them do not start early; each replay must see its own stream."""
    layers = two_layers(NUM_TOKENS, tile, has_bias=True)
    stream = torch.randn(NUM_TOKENS, HIDDEN, device=DEVICE)
    layers.check(stream)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        residual = stream.clone()
        layers.run(residual)
    for _ in range(5):
        stream.copy_(torch.randn_like(stream))
        graph.replay()
        assert_op_close(residual, layers.ordinary(stream))
