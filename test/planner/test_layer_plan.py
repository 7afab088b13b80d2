"""A plan and its file: read back as it was written, and found out when it is no longer true."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from planner.straight_times import StraightTimes

from chitu_like.cluster.cost_model import ModelFacts
from chitu_like.cluster.layer_placement import LayerPlacement
from chitu_like.cluster.layer_placement_file import read_layer_placement
from chitu_like.cluster.topology import SINK, SOURCE, Cluster, Link, Node
from chitu_like.core.errors import CapacityError, ConfigError
from chitu_like.planner import LayerPlan, NodeThroughput, TypicalLoad, evaluate

MODEL = ModelFacts(name="toy", num_layers=4, layer_bytes=1.0, activation_bytes=9.0, token_bytes=1.0)
THROUGHPUT = NodeThroughput(
    model=MODEL,
    load=TypicalLoad(),
    layer_times={"gpu": StraightTimes(10**6)},
    tokens_per_s={"gpu": (40.1, 20.3, 12.7)},
)
HELD = {"n0": range(3), "n1": range(2), "n2": range(2, 4)}


def cluster(*, memory_bytes: float = 100.0, bandwidth: float = 1e6) -> Cluster:
    names = [f"n{i}" for i in range(3)]
    ends = [(SOURCE, name) for name in names] + [(name, SINK) for name in names]
    ends += [(a, b) for a in names for b in names if a != b]
    return Cluster(
        tuple(Node(name=name, device="gpu", memory_bytes=memory_bytes) for name in names),
        tuple(Link(source=a, target=b, bandwidth=bandwidth) for a, b in ends),
    )


def plan(held=None) -> LayerPlan:
    placement = LayerPlacement(4, HELD if held is None else held)
    return LayerPlan.of(cluster(), MODEL, THROUGHPUT, placement, method="petals")


def test_a_plan_says_what_its_placement_gives():
    made = plan()
    flow = evaluate(cluster(), MODEL, THROUGHPUT, made.placement)
    assert made.max_flow == flow.max_flow == 20.3
    assert made.bottleneck == ("node n2",)
    assert made.link_flow == flow.link_flow
    assert made.max_compute_throughput == pytest.approx(3 * 40.6 / 4)
    assert 0 < made.tokens_per_s <= made.max_flow
    assert 0 < made.decode_latency_s < made.prompt_latency_s


def test_a_plan_is_read_back_as_it_was_written(tmp_path: Path):
    made, path = plan(), tmp_path / "out" / "placement.yaml"
    made.write(path, comment="by hand")
    assert LayerPlan.read(path) == made
    assert read_layer_placement(path) == made.placement


def test_a_plan_that_serves_nothing_has_a_file_too(tmp_path: Path):
    made = plan({"n0": range(3)})
    made.write(tmp_path / "placement.yaml")
    assert LayerPlan.read(tmp_path / "placement.yaml") == made


def test_a_true_plan_verifies_and_gives_its_flow():
    assert plan().verify(cluster(), MODEL, THROUGHPUT).max_flow == 20.3


def test_memory_coverage_and_flow_are_computed_again():
    with pytest.raises(CapacityError, match="node n0 is to hold 3 layers of toy and holds 2"):
        plan().verify(cluster(memory_bytes=4.0), MODEL, THROUGHPUT)
    with pytest.raises(CapacityError, match="no node holds the layers 2, 3: give"):
        plan({"n0": range(2)}).verify(cluster(), MODEL, THROUGHPUT)
    with pytest.raises(ConfigError, match=r"promises max_flow=20\.3 and this .* give 20: plan"):
        plan().verify(cluster(bandwidth=100.0), MODEL, THROUGHPUT)
    with pytest.raises(ConfigError, match="the plan is of toy, not of other"):
        plan().verify(cluster(), replace(MODEL, name="other"), THROUGHPUT)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("max_flow: 20.3", "max_flow: fast", r"figures: max_flow"),
        ("method: petals\n", "", "method is missing"),
        ("method:", "methode:", "unknown key 'methode'"),
        ("n2: 2-3", "n2: 3-2", "node n2 holds layers 3 to 2"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, old: str, new: str, message: str):
    path = tmp_path / "placement.yaml"
    plan().write(path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=message) as error:
        LayerPlan.read(path)
    assert str(path) in str(error.value)
