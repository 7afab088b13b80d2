from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chitu_like.cluster.units import (
    BYTES,
    HELIX_BYTES,
    HELIX_RATES,
    HELIX_SECONDS,
    RATES,
    SECONDS,
    Units,
    format_quantity,
    parse_quantity,
)
from chitu_like.core.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "units", "value"),
    [
        ("10 * gbps", HELIX_RATES, 10e9),  # bytes, not bits: the trap
        ("1000.0 * mbps", HELIX_RATES, 1e9),
        ("12.5 * kbps", HELIX_RATES, 12500),
        ("16 * GB", HELIX_BYTES, 16e9),
        ("24000.0 * MB", HELIX_BYTES, 24e9),
        ("1 * MilliSec", HELIX_SECONDS, 0.001),
        ("3*MilliSec", HELIX_SECONDS, 0.003),
        ("0.001", HELIX_SECONDS, 0.001),
        ("-1", HELIX_RATES, -1),
        (" 1.25e9 ", RATES, 1.25e9),
        ("1e9", RATES, 1e9),  # to yaml a text
        ("2 * ms", SECONDS, 0.002),
        ("7 * us", SECONDS, 7e-6),
    ],
)
def test_a_figure_is_a_number_times_a_unit(text: str, units: Units, value: float) -> None:
    assert parse_quantity(text, units, "here") == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fast",
        "10 gbps",
        "10 * Gbps",
        "10 * 10 * gbps",
        "10 + 1",
        "gbps",
        "10 ** 9",
        "__import__('os')",
        "1 * GB",
        "1 * MilliSec",
        "nan",
        "inf",
        "1_0",
        "٣",
        "9" * 1000,
    ],
)
def test_nothing_else_is_a_rate(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^C\.ini: \[A\] b=.*kbps, mbps, gbps.*1\.5 \* gbps$"):
        parse_quantity(text, HELIX_RATES, "C.ini: [A] b")


def test_a_figure_without_units_is_a_number_alone() -> None:
    assert parse_quantity("1.5", {}, "here") == 1.5
    with pytest.raises(ConfigError, match=r"^here=1\.5 \* GB: give a number$"):
        parse_quantity("1.5 * GB", {}, "here")


def test_gbps_is_unknown_in_files_of_ours() -> None:
    with pytest.raises(ConfigError, match="GB/s"):
        parse_quantity("10 * gbps", RATES, "here")


def test_a_number_that_no_float_holds_is_refused() -> None:
    with pytest.raises(ConfigError, match="finite"):
        parse_quantity("1e999 * gbps", HELIX_RATES, "here")


@settings(deadline=None)
@given(st.floats(min_value=0, allow_nan=False, allow_infinity=False), st.sampled_from([0, 1, 2]))
def test_what_is_written_is_read_back_bit_for_bit(value: float, kind: int) -> None:
    units = (BYTES, RATES, SECONDS)[kind]
    written = format_quantity(value, units)
    read = parse_quantity(written, units, "") if isinstance(written, str) else float(written)
    assert read == value


@pytest.mark.parametrize(
    ("value", "units", "written"),
    [
        (40e9, BYTES, "40 * GB"),
        (1.25e9, RATES, "1.25 * GB/s"),
        (0.001, SECONDS, "1 * ms"),
        (2.5, SECONDS, "2500 * ms"),
        (7e-6, SECONDS, "7 * us"),
        (math.inf, RATES, math.inf),
        (1234567891.0, BYTES, 1234567891.0),
        (3.0, BYTES, 3.0),
    ],
)
def test_round_figures_are_written_for_the_eye(
    value: float, units: Units, written: float | str
) -> None:
    assert format_quantity(value, units) == written
