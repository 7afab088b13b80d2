"""Drawing tokens: a slot's row of parameters; the Triton twin is tested by test_kernels.py."""

import itertools
import math

import numpy as np
import pytest

from chitu_like.ops import draw
from chitu_like.ops.triton.draw_tiling import tiling_for


def test_a_row_holds_the_bits_of_its_parameters() -> None:
    seed = 0xFEDCBA9876543210
    row = draw.pack_params(seed=seed, temperature=0.7, top_k=2**31 - 1, top_p=0.9, min_p=0.05)
    assert row.shape == (draw.NUM_PARAMS,)
    assert row.view(np.uint32)[[draw.SEED_LOW, draw.SEED_HIGH]].tolist() == [0x76543210, 0xFEDCBA98]
    assert row[draw.TOP_K] == 2**31 - 1
    floats = row.view(np.float32)
    assert floats[draw.TEMPERATURE] == np.float32(0.7)
    assert floats[draw.TOP_P] == np.float32(0.9)
    assert floats[draw.LOG_MIN_P] == np.log(np.float32(0.05))


@pytest.mark.parametrize(("temperature", "held"), [(0.0, 0.0), (9e-6, 0.0), (2e-5, 2e-5)])
def test_a_temperature_as_good_as_zero_is_greedy(temperature: float, held: float) -> None:
    row = draw.pack_params(seed=0, temperature=temperature, top_k=0, top_p=1.0, min_p=0.0)
    assert row.view(np.float32)[draw.TEMPERATURE] == np.float32(held)
    assert row.view(np.float32)[draw.LOG_MIN_P] == -math.inf


def test_more_rows_are_cut_into_parts_that_are_no_smaller() -> None:
    tilings = [tiling_for(num_rows) for num_rows in range(1, 600)]
    for fewer, more in itertools.pairwise(tilings):
        assert fewer.tile <= more.tile
        assert fewer.part <= more.part
    for cut in dict.fromkeys(tilings):
        assert cut.tile % cut.group == cut.part % cut.step == 0
    assert len(set(tilings)) <= 4, "each is compiled"
