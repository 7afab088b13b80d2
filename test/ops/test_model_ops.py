"""Every implementation of the models' ops against float64 formulas, over dtypes and odd shapes."""

from collections.abc import Callable

import pytest
import torch
from tolerance import assert_op_close
from torch import Tensor

from chitu_like.core.errors import UnsupportedError
from chitu_like.core.model_spec import ACTIVATIONS as SPEC_ACTIVATIONS
from chitu_like.ops.activation import ACTIVATIONS, act_and_mul_op
from chitu_like.ops.kv_store import kv_store_op
from chitu_like.ops.linear import PlainLinear, make_linear_kernel
from chitu_like.ops.norm import add_rms_norm_op, layer_norm_op, rms_norm_op
from chitu_like.ops.registry import Op
from chitu_like.ops.rotary import apply_rotary, rotation

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NUM_TOKENS = [0, 1, 7]

devices = [CPU] + ([torch.device("cuda")] if torch.cuda.is_available() else [])
every_case = [
    pytest.param(device, dtype, id=f"{device.type}-{str(dtype).removeprefix('torch.')}")
    for device in devices
    for dtype in DTYPES
]


def implementations(
    op: Op[Callable[..., Tensor]], device: torch.device, dtype: torch.dtype
) -> list[Callable[..., Tensor]]:
    return [op.resolve(device, dtype, kind) for kind in op.kinds(device, dtype)]


def rms_norm64(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()


@pytest.mark.parametrize("num_tokens", NUM_TOKENS)
@pytest.mark.parametrize("size", [1, 60, 129])
@pytest.mark.parametrize(("device", "dtype"), every_case)
def test_rms_norm(device: torch.device, dtype: torch.dtype, size: int, num_tokens: int) -> None:
    x = (torch.randn(num_tokens, size) * 3).to(device, dtype)
    weight = torch.randn(size).to(device, dtype)
    for rms_norm in implementations(rms_norm_op, device, dtype):
        kept = x.clone()
        assert_op_close(rms_norm(x, weight, 1e-3), rms_norm64(x, weight, 1e-3))
        assert torch.equal(x, kept)


@pytest.mark.parametrize("num_tokens", NUM_TOKENS)
@pytest.mark.parametrize(("device", "dtype"), every_case)
def test_rms_norm_of_heads_that_are_a_slice(
    device: torch.device, dtype: torch.dtype, num_tokens: int
) -> None:
    heads = torch.randn(num_tokens, 5, 12).to(device, dtype)[:, 1:4]
    weight = torch.randn(12).to(device, dtype)
    for rms_norm in implementations(rms_norm_op, device, dtype):
        assert_op_close(rms_norm(heads, weight, 1e-6), rms_norm64(heads, weight, 1e-6))


@pytest.mark.parametrize("num_tokens", NUM_TOKENS)
@pytest.mark.parametrize(("device", "dtype"), every_case)
def test_add_rms_norm_updates_the_residual(
    device: torch.device, dtype: torch.dtype, num_tokens: int
) -> None:
    x, before = (torch.randn(num_tokens, 60).to(device, dtype) for _ in range(2))
    weight = torch.randn(60).to(device, dtype)
    for add_rms_norm in implementations(add_rms_norm_op, device, dtype):
        residual, kept = before.clone(), x.clone()
        out = add_rms_norm(x, residual, weight, 1e-6)
        assert_op_close(residual, before.double() + x.double())
        assert_op_close(out, rms_norm64(residual, weight, 1e-6))
        assert torch.equal(x, kept)


@pytest.mark.parametrize("num_tokens", NUM_TOKENS)
@pytest.mark.parametrize("has_weights", [True, False])
@pytest.mark.parametrize(("device", "dtype"), every_case)
def test_layer_norm(
    device: torch.device, dtype: torch.dtype, has_weights: bool, num_tokens: int
) -> None:
    x = (torch.randn(num_tokens, 60) + 2).to(device, dtype)
    weight, bias = (torch.randn(60).to(device, dtype) if has_weights else None for _ in range(2))
    expected = x.double() - x.double().mean(-1, keepdim=True)
    expected = expected / (expected.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    if weight is not None and bias is not None:
        expected = expected * weight.double() + bias.double()
    for layer_norm in implementations(layer_norm_op, device, dtype):
        assert_op_close(layer_norm(x, weight, bias, 1e-5), expected)


@pytest.mark.parametrize("num_tokens", NUM_TOKENS)
@pytest.mark.parametrize("rotary_dim", [2, 8, 12])
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize(("device", "dtype"), every_case)
def test_apply_rotary_turns_pairs_as_complex_numbers(
    device: torch.device, dtype: torch.dtype, interleaved: bool, rotary_dim: int, num_tokens: int
) -> None:
    x = torch.randn(num_tokens, 5, 12).to(device, dtype)
    angles = torch.rand(num_tokens, rotary_dim // 2, device=device) * 6
    once = torch.ones(num_tokens, dtype=torch.int64, device=device)
    turned = rotation(once, angles, interleaved=interleaved, scale=1.3, dtype=dtype)
    pairs = x[..., :rotary_dim].double()
    shape = (-1, 2) if interleaved else (2, -1)
    pairs = pairs.unflatten(-1, shape)
    pairs = pairs if interleaved else pairs.transpose(-1, -2)
    turn = torch.polar(torch.full_like(angles, 1.3), angles).to(torch.complex128)
    out = torch.view_as_real(torch.complex(pairs[..., 0], pairs[..., 1]) * turn.unsqueeze(1))
    out = (out if interleaved else out.transpose(-1, -2)).flatten(-2)
    expected = torch.cat((out, x[..., rotary_dim:].double()), -1)
    heads = torch.cat((x, x), 1)[:, :5]  # a slice, as the queries of a merged qkv are
    assert_op_close(apply_rotary(heads, turned, interleaved), expected)


@pytest.mark.parametrize("num_tokens", NUM_TOKENS)
@pytest.mark.parametrize(("device", "dtype"), every_case)
def test_silu_and_mul(device: torch.device, dtype: torch.dtype, num_tokens: int) -> None:
    x = torch.randn(num_tokens, 2 * 37).to(device, dtype)
    gate, up = x.double().chunk(2, -1)
    for act_and_mul in implementations(act_and_mul_op, device, dtype):
        kept = x.clone()
        assert_op_close(act_and_mul(x, "silu"), gate / (1 + (-gate).exp()) * up)
        assert torch.equal(x, kept)


def test_activations_are_those_of_transformers_and_of_the_spec() -> None:
    from transformers.activations import ACT2FN

    assert sorted(ACTIVATIONS) == sorted(SPEC_ACTIVATIONS)
    x = torch.randn(3, 50) * 3
    for name, activation in ACTIVATIONS.items():
        kept = x.clone()
        assert_op_close(activation(x), ACT2FN[name](x))
        gate, up = x.chunk(2, -1)
        expected = ACT2FN[name](gate) * up
        assert_op_close(act_and_mul_op.resolve(CPU, torch.float32)(x, name), expected)
        assert torch.equal(x, kept)


@pytest.mark.parametrize("num_tokens", NUM_TOKENS)
@pytest.mark.parametrize(("device", "dtype"), every_case)
def test_kv_store_writes_its_slots_and_no_other(
    device: torch.device, dtype: torch.dtype, num_tokens: int
) -> None:
    shape = (6, 4, 2, 12)
    slots = torch.randperm(24, device=device)[:num_tokens]
    merged = torch.randn(num_tokens, 8, 12).to(device, dtype)
    k, v = merged[:, 4:6], merged[:, 6:]
    for kv_store in implementations(kv_store_op, device, dtype):
        k_cache, v_cache = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
        kv_store(k, v, k_cache, v_cache, slots)
        for cache, values in ((k_cache, k), (v_cache, v)):
            expected = torch.zeros(24, 2, 12, dtype=dtype, device=device)
            for slot, value in zip(slots.tolist(), values, strict=True):
                expected[slot] = value
            assert torch.equal(cache.view(24, 2, 12), expected)


@pytest.mark.parametrize("num_tokens", NUM_TOKENS)
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize(("device", "dtype"), every_case)
def test_linear_kernels(
    device: torch.device, dtype: torch.dtype, has_bias: bool, num_tokens: int
) -> None:
    x, weight = torch.randn(num_tokens, 48).to(device, dtype), torch.randn(80, 48) / 7
    weight = weight.to(device, dtype)
    bias = torch.randn(80).to(device, dtype) if has_bias else None
    expected = x.double() @ weight.double().T
    expected = expected if bias is None else expected + bias.double()
    for kernel in (PlainLinear(weight, bias), make_linear_kernel(weight.clone(), bias)):
        torch.testing.assert_close(
            kernel(x).double(), expected, rtol=2e-2, atol=8 * torch.finfo(dtype).eps
        )


def double(x: Tensor) -> Tensor:
    return x * 2


def test_an_op_takes_the_fastest_kind_that_serves() -> None:
    op = Op("double", double)
    on_half = op.register("triton", supports=lambda _, dtype: dtype == torch.float16)(
        lambda x: x + x
    )
    assert op.kinds(CPU, torch.float16) == ["triton", "torch"]
    assert op.resolve(CPU, torch.float16) is on_half
    assert op.resolve(CPU, torch.float16, "torch") is double
    assert op.resolve(CPU, torch.float32) is double
    assert op.resolve(CPU, torch.float32, "cuda") is double  # the op has no such kind at all
    with pytest.raises(UnsupportedError, match=r"double.*triton.*infer\.op_impl"):
        op.resolve(CPU, torch.float32, "triton")
    with pytest.raises(ValueError, match="taken"):
        op.register("triton", supports=lambda _, __: True)
