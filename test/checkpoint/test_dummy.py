import pytest
import torch

from chitu_like.checkpoint.dummy import PERIOD, DummyNoise, DummyTensor

ROWS, WIDTH = 5000, 900  # more than four periods
NAME = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def tensor() -> DummyTensor:
    return DummyTensor(DummyNoise(0), NAME, torch.Size((ROWS, WIDTH)), torch.float32)


def test_values_repeat_after_a_period(tensor):
    flat = tensor[()].flatten()
    assert torch.equal(flat[:PERIOD], flat[PERIOD : 2 * PERIOD])
    assert torch.equal(flat[: -4 * PERIOD], flat[4 * PERIOD :])


def test_a_slice_is_that_of_the_whole(tensor):
    whole = tensor[()]
    for start, stop in [(0, 0), (0, 1), (7, 1300), (1165, 1166), (0, ROWS), (ROWS - 1, ROWS)]:
        assert torch.equal(tensor[(slice(start, stop),)], whole[start:stop])
        part = tensor[(slice(start, stop), slice(3, 450))]
        assert torch.equal(part, whole[start:stop, 3:450])


def test_no_two_rows_are_equal(tensor):
    assert len(torch.unique(tensor[(slice(0, ROWS), slice(0, 4))], dim=0)) == ROWS


def test_a_product_keeps_the_size_of_its_input(tensor):
    x = torch.randn(4, WIDTH)
    assert (x @ tensor[()].t()).std() == pytest.approx(1.0, abs=0.1)


def test_lower_precision_rounds_the_same_numbers(tensor):
    rounded = DummyTensor(DummyNoise(0), NAME, tensor.shape, torch.bfloat16)
    assert torch.equal(rounded[()], tensor[()].bfloat16())


@pytest.mark.parametrize("seed", [-1, 0, 2**63, 2**80])
def test_any_integer_is_a_seed(seed):
    values = DummyTensor(DummyNoise(seed), "norm.weight", torch.Size((8,)), torch.float32)
    assert values[()].isfinite().all()
