import logging

import pytest
import torch
import torch.nn.functional as F

from chitu_like.ops import linear_cpu
from chitu_like.ops.linear import PlainLinear, make_linear_kernel
from chitu_like.ops.linear_cpu import PackedLinear, can_pack, is_packing_right

DTYPES = [
    pytest.param(
        dtype,
        marks=pytest.mark.skipif(not is_packing_right(dtype), reason=f"no packing of {dtype} here"),
    )
    for dtype in (torch.float32, torch.bfloat16)
]
SHAPES = [(1, 1), (1, 64), (64, 1), (77, 100), (896, 896), (130, 1152), (2049, 33)]


@pytest.fixture(autouse=True)
def _probe_afresh():
    is_packing_right.cache_clear()
    yield
    is_packing_right.cache_clear()


def make(shape, dtype):
    return (torch.randn(shape) / shape[-1] ** 0.5).to(dtype)


def roundings(dtype):
    # Unit-sized sums: bfloat16 rounds the result once; float32 differs by the order of the sum.
    return 2e-2 if dtype is torch.bfloat16 else 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tokens", [0, 1, 3, 16, 65])
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
def test_packed_product_equals_plain(dtype, shape, tokens, with_bias):
    weight, x = make(shape, dtype), torch.randn(tokens, shape[1]).to(dtype)
    bias = torch.randn(shape[0]).to(dtype) if with_bias else None
    found = PackedLinear(weight, bias)(x)
    assert found.dtype == dtype
    tolerance = roundings(dtype)
    torch.testing.assert_close(found, F.linear(x, weight, bias), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "x",
    [torch.randn(32), torch.randn(2, 3, 32), torch.randn(32, 5).t(), torch.randn(5, 80)[:, 8:40]],
    ids=["one token", "three dims", "transposed", "strided rows"],
)
def test_any_input_layout_is_taken(dtype, x):
    weight = make((48, 32), dtype)
    before = x.clone()
    found = PackedLinear(weight, None)(x.to(dtype))
    tolerance = roundings(dtype)
    expected = F.linear(x.to(dtype), weight)
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_unpacking_gives_the_weight_back(dtype):
    weight = make((77, 100), dtype)
    unpacked = PackedLinear(weight, None).unpacked()
    assert (unpacked.dtype, unpacked.layout) == (dtype, torch.strided)
    assert torch.equal(unpacked, weight)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_slice_and_a_transposed_weight_pack(dtype):
    whole = make((96, 64), dtype)
    x = torch.randn(4, 64).to(dtype)
    torch.testing.assert_close(PackedLinear(whole[32:64], None)(x), F.linear(x, whole[32:64]))
    square = whole[:64].t()
    torch.testing.assert_close(PackedLinear(square, None)(x), F.linear(x, square.contiguous()))


@pytest.mark.parametrize("dtype", DTYPES)
def test_packing_leaves_the_plain_weight_alone(dtype):
    weight = make((40, 24), dtype)
    before = weight.clone()
    packed = PackedLinear(weight, None)
    weight.zero_()
    x = torch.randn(2, 24).to(dtype)
    torch.testing.assert_close(packed(x), F.linear(x, before))


@pytest.mark.parametrize(
    "weight",
    [
        torch.ones(4),
        torch.ones(0, 4),
        torch.ones(2, 3, 4),
        torch.ones(4, 4, device="meta"),
        torch.ones(4, 4, dtype=torch.int8),
        torch.ones(4, 4, dtype=torch.float64),
    ],
    ids=["vector", "empty", "three dims", "meta", "int8", "float64"],
)
def test_what_cannot_be_packed_is_said_so(weight):
    assert not can_pack(weight)


def test_a_torch_without_the_operator_stays_plain_and_says_so_once(monkeypatch, caplog):
    def absent(*_):
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")

    monkeypatch.setattr(linear_cpu, "_multiply", absent)
    with caplog.at_level(logging.INFO, logger=linear_cpu.__name__):
        assert not can_pack(torch.ones(4, 4))
        assert not can_pack(torch.ones(4, 4))
    assert [record.getMessage() for record in caplog.records] == [
        "linear layers in torch.float32 stay plain on this CPU: '_OpNamespace' 'mkldnn' object has "
        "no attribute '_linear_pointwise'"
    ]


@pytest.mark.skipif(not is_packing_right(torch.float32), reason="no packing here")
def test_a_wrong_product_is_noticed(monkeypatch, caplog):
    right = linear_cpu._multiply
    monkeypatch.setattr(linear_cpu, "_multiply", lambda *inputs: right(*inputs) * 1.001)
    assert not can_pack(torch.ones(4, 4))
    assert "packed product is wrong" in caplog.text


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_cpu_weight_is_packed_wherever_it_can_be(dtype):
    assert isinstance(make_linear_kernel(make((8, 16), dtype), None), PackedLinear)


def test_what_cannot_be_packed_multiplies_plainly():
    weight, x = torch.randn(8, 16).double(), torch.randn(3, 16).double()
    kernel = make_linear_kernel(weight, None)
    assert isinstance(kernel, PlainLinear)
    assert torch.equal(kernel(x), F.linear(x, weight))
