from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chitu_like.cluster.layer_placement import LayerPlacement
from chitu_like.cluster.layer_placement_file import read_layer_placement, write_layer_placement
from chitu_like.core.errors import ConfigError

BY_HAND = "num_layers: 8\nlayers:\n  a: 0-5\n  b: 7\nflow: {anything: else}\n"


@st.composite
def placements(draw: st.DrawFn) -> LayerPlacement:
    num_layers = draw(st.integers(1, 100))
    held = {}
    for name in draw(st.lists(st.text(min_size=1, max_size=5), unique=True, max_size=5)):
        first = draw(st.integers(0, num_layers - 1))
        held[name] = range(first, draw(st.integers(first, num_layers - 1)) + 1)
    return LayerPlacement(num_layers, held)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(placements())
def test_a_placement_is_read_back_as_it_was_written(
    tmp_path: Path, placement: LayerPlacement
) -> None:
    write_layer_placement(placement, tmp_path / "placement.yaml")
    assert read_layer_placement(tmp_path / "placement.yaml") == placement


def test_first_and_last_layer_are_both_held_and_other_keys_are_left_alone(tmp_path: Path) -> None:
    assert read(tmp_path, BY_HAND).held == {"a": range(6), "b": range(7, 8)}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("num_layers: 8", "x: 8", "num_layers is missing"),
        ("num_layers: 8", "num_layers: 1e9", "num_layers='1e9': must be a whole number"),
        ("0-5", "5-0", "layers: node a holds layers 5 to 0"),
        ("0-5", "0-8", "layers: node a holds layers 0 to 8: the model has 0 to 7"),
        ("0-5", "[0, 5]", "layers: a=[0, 5]: must be a text"),
        ("0-5", "0..5", "layers: a='0..5': must be the first and the last layer"),
        ("0-5", "-3", "layers: a=-3: must be the first and the last layer"),
        ("0-5", "0-" + "9" * 5000, "must be the first and the last layer"),
        ("a: 0-5", "3: 0-5", "layers: key 3 must be a text"),
        ("b: 7", "a: 7", "key 'a' is there twice"),
    ],
)
def test_a_mistake_is_one_line_with_file_and_key(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        read(tmp_path, BY_HAND.replace(old, new))
    assert str(error.value).startswith(str(tmp_path))
    assert "\n" not in str(error.value)


def read(folder: Path, text: str) -> LayerPlacement:
    path = folder / "placement.yaml"
    path.write_text(text, encoding="utf-8")
    return read_layer_placement(path)
