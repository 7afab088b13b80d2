"""Helix's tables: linear between points, never beyond them."""

from pathlib import Path

import pytest
from layer_table_cases import constants, tables

from chitu_like.cluster.layer_tables import LayerTables, read_times
from chitu_like.core.errors import ConfigError


def test_between_points_times_lie_on_the_line() -> None:
    times = tables()
    assert times.prompt_s(10) == pytest.approx(0.004)
    assert times.prompt_s(25) == pytest.approx(0.0055)
    assert times.decode_s(0.25) == pytest.approx(0.00025)
    assert times.prompt_s(0) == times.decode_s(0) == 0


def test_beyond_the_table_one_line_names_device_and_range() -> None:
    with pytest.raises(ConfigError, match=r"toy on T4: no prompt batch of 31 tokens .* 0 to 30"):
        tables().prompt_s(31)
    with pytest.raises(ConfigError, match=r"no decode batch of 300\.5 .* 0 to 300"):
        tables().decode_s(300.5)


def test_what_fits_goes_by_layers() -> None:
    times = tables()
    assert times.max_layers == 2
    assert times.kv_tokens(2) == 16 * 500
    assert (times.max_prompt_requests(1), times.max_decode_tokens(2)) == (3, 300)
    assert times.max_prompt_tokens(1) == 3 * 2048
    for num_layers in (0, 3):
        with pytest.raises(ConfigError, match=f"{num_layers} layers do not fit: it holds 1 to 2"):
            times.kv_tokens(num_layers)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    tables().write(tmp_path)
    again = LayerTables.read(tmp_path, model="toy", device="T4")
    assert again.machine == constants()
    for before, after in ((tables().prompt, again.prompt), (tables().decode, again.decode)):
        assert after.xs == before.xs
        assert after.ys == pytest.approx(before.ys, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("1,2\n3,x\n", r"t\.csv: row 2 is '3,x': give two numbers"),
        ("1,2\n3\n", "row 2 is '3'"),
        ("1,2\n1,3\n", "1 stands before 1: amounts must ascend"),
        ("1,-2\n", "finite numbers, 0 or more"),
        ("1,nan\n", "finite numbers, 0 or more"),
        ("", "0 amounts and 0 values"),
    ],
)
def test_a_broken_table_is_one_line(tmp_path: Path, text: str, fault: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=fault):
        read_times(path)


def test_a_machine_that_says_nothing_of_some_layers_is_refused(tmp_path: Path) -> None:
    tables().write(tmp_path)
    path = tmp_path / "machine.json"
    path.write_text(path.read_text().replace('"max_num_layers": 2', '"max_num_layers": 3'))
    with pytest.raises(ConfigError, match=r"toy on T4: \w+\[3\]=None: give a number above 0"):
        LayerTables.read(tmp_path, model="toy", device="T4")
    path.write_text(path.read_text().replace("max_num_layers", "num_layers"))
    with pytest.raises(ConfigError, match=r"machine\.json: Object contains unknown field"):
        LayerTables.read(tmp_path, model="toy", device="T4")
