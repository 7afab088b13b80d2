"""The roofline's figures: found again where they are known, and as far off as is said."""

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from chitu_like.bench.calibrate_roofline import (
    RELATIVES,
    SHEETS,
    calibrate,
    error_table,
    rates_of,
    read_calls,
)
from chitu_like.cluster.profile import find_profile
from chitu_like.cluster.roofline import Rate
from chitu_like.cluster.roofline_fit import fit_rate, relative_errors
from chitu_like.core.errors import ConfigError

TABLES = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "profiles"
needs_tables = pytest.mark.skipif(not TABLES.is_dir(), reason=f"{TABLES} is not here")

MOST_MEDIAN = {"gemm": 0.10, "prefill": 0.15, "decode": 0.27, "all_reduce": 0.12}
"""What the roofline is off by, the worst device; its table is printed with -s."""


def test_a_rate_is_found_again() -> None:
    rng = np.random.default_rng(0)
    flops, num_bytes = 10 ** rng.uniform(6, 14, 500), 10 ** rng.uniform(3, 10, 500)
    true = Rate(overhead_s=4e-6, flops_per_s=2e14, bytes_per_s=1.1e12)
    seconds = true.overhead_s + np.maximum(flops / 2e14, num_bytes / 1.1e12)
    found = fit_rate(flops, num_bytes, seconds * rng.uniform(0.97, 1.03, 500))
    assert found.overhead_s == pytest.approx(true.overhead_s, rel=0.02)
    assert found.flops_per_s == pytest.approx(true.flops_per_s, rel=0.02)
    assert found.bytes_per_s == pytest.approx(true.bytes_per_s, rel=0.02)
    assert relative_errors(true, flops, num_bytes, seconds).max() < 1e-12


@needs_tables
def test_the_figures_in_config_are_those_of_the_tables_and_so_far_off() -> None:
    figures, calls = calibrate(TABLES), read_calls(TABLES)
    assert figures == find_profile("roofline").devices
    assert {gpu for gpu, _ in calls} == {"H200", "H100", "A100", "L40S"}
    Console().print(error_table(figures, calls))
    for (gpu, kind), found in calls.items():
        median = float(np.median(found.errors(rates_of(figures[gpu])[kind])))
        assert median < MOST_MEDIAN[kind.partition("[")[0]], (gpu, kind)


def test_every_device_of_config_says_where_its_figures_come_from() -> None:
    devices = find_profile("roofline").devices
    assert set(devices) == set(SHEETS)
    for name, figures in devices.items():
        assert figures.source.startswith("data sheet" if name in RELATIVES else "fitted to")
        assert figures.gemm.flops_per_s < SHEETS[name].flops_per_s
        assert figures.gemm.bytes_per_s < SHEETS[name].bytes_per_s


def test_a_missing_table_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"op_gemm\.csv\.gz: cannot be read"):
        read_calls(tmp_path)
