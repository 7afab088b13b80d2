"""The linear kernel of infer.deterministic; test_kernels.py runs this in the interpreter.

By hand: `TRITON_INTERPRET=1 pytest test/ops/invariant_linear_cases.py` on a CPU, and without the
variable on a CUDA device, where bits are compared as well.
"""

import pytest
import torch
from tolerance import assert_op_close
from torch import Tensor

from chitu_like.ops.triton.invariant_linear import FEW, MANY, Tile, invariant_linear
from chitu_like.ops.triton.paged_attention import is_interpreted

DEVICE = torch.device("cpu" if is_interpreted() else "cuda")
SMALL = Tile(tokens=64, outputs=32, inputs=32, num_warps=4, num_stages=2)
SHAPES = [  # (tokens, outputs, inputs)
    (1, 1, 1),
    (1, 40, 64),
    (3, 33, 50),
    (65, 32, 96),
    (600, 70, 32),
]


def make(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape).to(DEVICE, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_a_linear_layer(
    shape: tuple[int, int, int], has_bias: bool, dtype: torch.dtype
) -> None:
    num_tokens, num_outputs, num_inputs = shape
    merged = make(num_tokens, num_inputs + 3, dtype=dtype)
    x = merged[:, :num_inputs]  # strided
    weight = make(num_outputs, num_inputs, dtype=dtype) / num_inputs**0.5
    bias = make(num_outputs, dtype=dtype) if has_bias else None
    out = invariant_linear(x, weight, bias, tile=SMALL)
    assert out.dtype == dtype
    exact = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    assert_op_close(out, exact)


def test_no_tokens_give_nothing() -> None:
    x, weight = make(0, 8, dtype=torch.float32), make(5, 8, dtype=torch.float32)
    assert invariant_linear(x, weight).shape == (0, 5)


@pytest.mark.skipif(is_interpreted(), reason="the interpreter's products are numpy's")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(6144, 4096), (4096, 14336), (1000, 1100)])
def test_a_token_gets_the_same_bits_in_every_company(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    weight, bias = make(*shape, dtype=dtype), make(shape[0], dtype=dtype)
    x = make(1200, shape[1], dtype=dtype)
    alone = invariant_linear(x[:1], weight, bias)
    for num_tokens in (1, 2, 7, 63, 64, 65, 255, 256, 257, 1200):
        everyone = invariant_linear(x[:num_tokens], weight, bias)
        assert torch.equal(everyone[:1], alone), f"among {num_tokens} tokens"
    for tile in (FEW, MANY):
        last = invariant_linear(x[700:777], weight, bias, tile=tile)
        assert torch.equal(invariant_linear(x, weight, bias)[700:777], last)
