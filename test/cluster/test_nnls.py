"""Non-negative least squares against scipy's."""

import numpy as np
import pytest

from chitu_like.cluster.nnls import nnls

optimize = pytest.importorskip("scipy.optimize", reason="scipy is what nnls is compared with")


@pytest.mark.parametrize("seed", range(40))
def test_it_finds_what_scipy_finds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, columns = int(rng.integers(3, 40)), int(rng.integers(1, 20))
    a = rng.normal(size=(rows, columns)) * 10.0 ** rng.integers(-6, 6, size=columns)
    b = rng.normal(size=rows) if seed % 2 else a @ np.maximum(rng.normal(size=columns), 0)
    x = nnls(a, b)
    assert (x >= 0).all()
    _, least = optimize.nnls(a / np.linalg.norm(a, axis=0), b)
    zero = 1e-9 * np.linalg.norm(b)
    assert np.linalg.norm(a @ x - b) == pytest.approx(least, rel=1e-6, abs=zero)


def test_equal_columns_and_columns_of_zeros_do_no_harm() -> None:
    a = np.array([[1.0, 1.0, 0.0], [2.0, 2.0, 0.0]])
    x = nnls(a, np.array([3.0, 6.0]))
    assert x[0] + x[1] == pytest.approx(3.0)
    assert x[2] == 0
