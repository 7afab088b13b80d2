"""FusedDecode with the skinny kernel itself; test_fused_decode.py runs this in the interpreter."""

import torch
from layers.test_fused_decode import NUM_TOKENS, TinyLayer, table_of
from tolerance import assert_op_close

from chitu_like.layers.fused_decode import FusedDecode
from chitu_like.ops.linear import skinny_kernel
from chitu_like.ops.triton.paged_attention import is_interpreted

DEVICE = torch.device("cpu" if is_interpreted() else "cuda")


def test_a_fused_layer_computes_what_the_ordinary_one_does() -> None:
    layer = TinyLayer(torch.float32, DEVICE, has_bias=True)
    fused = FusedDecode.build(
        [layer.parts],
        activation="silu",
        options=layer.options,
        table=table_of(layer.parts, NUM_TOKENS, gain_us=1.0),
        make_kernel=skinny_kernel,
    )
    assert fused is not None
    residual = layer.stream(NUM_TOKENS)
    expected = layer.ordinary(residual)
    layers = fused.layers_for(NUM_TOKENS)
    assert layers is not None
    layers[0](residual, layer.attend)
    assert_op_close(residual, expected)
