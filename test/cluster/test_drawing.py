from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chitu_like.cluster.drawing import draw_cluster, rows_of, usable_links
from chitu_like.cluster.generate import LinkSpeed, numbered, partitioned, single_region
from chitu_like.cluster.layer_placement import LayerPlacement
from chitu_like.cluster.topology import SINK, SOURCE, Node
from chitu_like.core.errors import ConfigError, UnsupportedError

SPEED = LinkSpeed(bandwidth=1e9, latency_s=1e-3)
NODES = [
    *numbered(2, Node(name="A100", device="A100", memory_bytes=40e9)),
    *numbered(2, Node(name="T4", device="T4", memory_bytes=16e9)),
]
CLUSTER = single_region(NODES, SPEED)
PLACEMENT = LayerPlacement(8, {"A100-0": range(5), "T4-0": range(3, 7), "T4-1": range(5, 8)})

ranges = st.tuples(st.integers(0, 18), st.integers(1, 8)).map(
    lambda pair: range(pair[0], min(20, pair[0] + pair[1]))
)


@settings(deadline=None)
@given(st.lists(ranges, max_size=12))
def test_nodes_in_a_row_hold_different_layers_and_rows_are_few(held: list[range]) -> None:
    placement = LayerPlacement(20, {str(index): layers for index, layers in enumerate(held)})
    rows = rows_of(placement)
    assert rows.keys() == placement.held.keys()
    seen = [(rows[name], layer) for name, layers in placement.held.items() for layer in layers]
    assert len(seen) == len(set(seen))
    deepest = max((sum(layer in layers for layers in held) for layer in range(20)), default=0)
    assert len(set(rows.values())) == deepest


def test_a_request_goes_where_its_next_layer_is() -> None:
    taken = {(link.source, link.target) for link in usable_links(CLUSTER, PLACEMENT)}
    assert taken == {
        (SOURCE, "A100-0"),
        ("A100-0", "T4-0"),  # layers 5 and 6 of its 3 to 6
        ("A100-0", "T4-1"),
        ("T4-0", "T4-1"),
        ("T4-1", SINK),
    }


@pytest.mark.parametrize("suffix", ["svg", "png"])
@pytest.mark.parametrize("what", ["cluster", "placement", "flow"])
def test_drawings_are_written(tmp_path: Path, suffix: str, what: str) -> None:
    path = tmp_path / "new" / f"{what}.{suffix}"
    draw_cluster(
        path,
        CLUSTER,
        placement=None if what == "cluster" else PLACEMENT,
        link_flow={(SOURCE, "A100-0"): 3.0, ("A100-0", "T4-1"): 2.0} if what == "flow" else None,
    )
    assert path.read_bytes().startswith(b"\x89PNG" if suffix == "png" else b"<?xml")


def test_a_drawing_names_nodes_layers_and_who_holds_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import matplotlib as mpl

    monkeypatch.setitem(mpl.rcParams, "svg.fonttype", "none")
    draw_cluster(tmp_path / "a.svg", CLUSTER, placement=PLACEMENT)
    text = (tmp_path / "a.svg").read_text()
    for word in ("A100-0", "0-4", "T4-1", "5-7", "2 x T4", "source", "sink", "no layer: A100-1"):
        assert word in text
    regions = partitioned({"east": NODES[:2], "west": NODES[2:]}, inner=SPEED, cross=SPEED)
    draw_cluster(tmp_path / "b.svg", regions)
    text = (tmp_path / "b.svg").read_text()
    assert text.count(">east<") == 2
    assert "A100-1" in text


def test_flow_makes_lines_wide_and_red(tmp_path: Path) -> None:
    def widths(flow: dict[tuple[str, str], float] | None) -> list[str]:
        draw_cluster(tmp_path / "a.svg", CLUSTER, placement=PLACEMENT, link_flow=flow)
        text = (tmp_path / "a.svg").read_text()
        return [part.split(";")[0] for part in text.split("stroke: #d62728; stroke-width: ")[1:]]

    assert widths(None) == []
    assert widths({(SOURCE, "A100-0"): 3.0, ("A100-0", "T4-1"): 1.5})


def test_what_cannot_be_drawn_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a\.doc: cannot be drawn: .*doc"):
        draw_cluster(tmp_path / "a.doc", CLUSTER)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be drawn"):
        draw_cluster(tmp_path / "file" / "a.png", CLUSTER)
    with pytest.raises(ConfigError, match="names node B, which the cluster has not"):
        draw_cluster(tmp_path / "a.png", CLUSTER, placement=LayerPlacement(1, {"B": range(1)}))


def test_without_matplotlib_the_line_that_installs_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match=r"pip install 'chitu-like\[plot\]'"):
        draw_cluster(tmp_path / "a.png", CLUSTER)
