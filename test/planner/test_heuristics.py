"""Rules of thumb: what each of them is about, by hand, and what all of them promise."""

from __future__ import annotations

import pytest

from chitu_like.cluster.cost_model import ModelFacts
from chitu_like.cluster.topology import Cluster, Node
from chitu_like.core.errors import CapacityError
from chitu_like.planner import NodeThroughput, TypicalLoad, homogeneous, petals, pipelines, swarm

MODEL = ModelFacts(name="toy", num_layers=6, layer_bytes=1.0, activation_bytes=9.0)
THROUGHPUT = NodeThroughput(
    model=MODEL,
    load=TypicalLoad(),
    layer_times={},
    tokens_per_s={"big": (60.0, 30.0, 20.0, 15.0), "small": (14.0, 7.0)},
)


def cluster(*devices: str) -> Cluster:
    return Cluster(
        tuple(
            Node(name=f"{device}{i}", device=device, memory_bytes=100.0)
            for i, device in enumerate(devices)
        ),
        (),
    )


def ends(placement) -> dict[str, tuple[int, int]]:
    return {name: (layers.start, layers.stop) for name, layers in placement.held.items()}


@pytest.mark.parametrize("seed", range(5))
def test_petals_covers_first_and_then_helps_where_least_is_done(seed):
    """Both orders of the first two cover 0-3 and 4-5, or 0-1 and 2-5; the third sees the rest."""
    found = petals(cluster("big", "small", "small"), THROUGHPUT, seed=seed)
    assert found.uncovered() == []
    assert sorted(len(layers) for layers in found.held.values()) == [2, 2, 4]
    assert found == petals(cluster("big", "small", "small"), THROUGHPUT, seed=seed)


def test_petals_draws_another_order_with_another_seed():
    where = cluster("big", "small", "small")
    assert len({str(ends(petals(where, THROUGHPUT, seed=seed))) for seed in range(10)}) > 1


def test_swarm_gives_the_weakest_stage_the_next_node():
    """Three stages of 2: big, big, small, then the smalls join the stage that is weakest."""
    found = swarm(cluster("small", "big", "small", "big", "small"), THROUGHPUT)
    assert ends(found) == {
        "small0": (4, 6),
        "big1": (0, 2),
        "small2": (4, 6),
        "big3": (2, 4),
        "small4": (4, 6),
    }


def test_swarm_stages_that_do_not_divide_the_layers_differ_by_one():
    found = swarm(cluster("big", "big", "big", "big"), THROUGHPUT, num_stages=4)
    assert sorted(len(layers) for layers in found.held.values()) == [1, 1, 2, 2]
    assert found.uncovered() == []


def test_swarm_leaves_out_what_cannot_hold_a_stage():
    found = swarm(cluster("big", "small", "big"), THROUGHPUT, num_stages=2)
    assert set(found.held) == {"big0", "big2"}


def test_swarm_with_fewer_nodes_than_stages_says_so():
    with pytest.raises(CapacityError, match=r"3 swarm stages of 2 layers .* 2 of 2 do"):
        swarm(cluster("big", "small"), THROUGHPUT)


def test_homogeneous_pipelines_are_filled_in_order_of_speed():
    found = homogeneous(cluster("small", "small", "small", "big", "big"), THROUGHPUT)
    assert {(4, 6), (0, 4)} == {ends(found)["big3"], ends(found)["big4"]}
    smalls = {ends(found)[name] for name in ("small0", "small1", "small2")}
    assert smalls == {(0, 2), (2, 4), (4, 6)}


def test_leftovers_help_where_least_is_done_or_stay_empty():
    """The second big node has 2 of its 4 layers in the pipeline, and is the faster for it."""
    where = cluster("big", "big", "small")
    alone = homogeneous(where, THROUGHPUT, leftovers=False)
    assert set(alone.held) == {"big0", "big1"}
    helped = homogeneous(where, THROUGHPUT)
    assert {**ends(helped)} == {**ends(alone), "small2": (0, 2)}


def test_pipelines_of_a_cluster_that_is_too_small_are_refused():
    with pytest.raises(CapacityError, match=r"holds 4 \(2 small x 2\)"):
        homogeneous(cluster("small", "small"), THROUGHPUT)


def test_one_pipeline_is_as_even_as_speeds_allow():
    """At 14 tokens/s a big node holds 4 layers and a small one 1: 4 + 1 + 1."""
    found = pipelines(cluster("small", "big", "small"), THROUGHPUT)
    assert ends(found) == {"big1": (0, 4), "small0": (4, 5), "small2": (5, 6)}


def test_several_pipelines_are_whole_and_who_is_left_helps():
    """Twice 6 layers of two big nodes at 20 tokens/s; the small one joins what is least done."""
    found = pipelines(cluster("big", "big", "big", "big", "small"), THROUGHPUT, count=2)
    bigs = sorted(ends(found)[f"big{i}"] for i in range(4))
    assert bigs == [(0, 3), (0, 3), (3, 6), (3, 6)]
    assert ends(found)["small4"] == (0, 2)


def test_more_pipelines_than_there_is_room_for_are_refused():
    with pytest.raises(CapacityError, match="does not hold toy 2 times"):
        pipelines(cluster("big", "small", "small"), THROUGHPUT, count=2)
