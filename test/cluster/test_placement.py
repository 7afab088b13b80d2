"""Placement over every small shape: each rank once, each layer once, neighbours together."""

from __future__ import annotations

from itertools import combinations, pairwise, product

import pytest

from chitu_like.cluster.placement import Placement, balanced_partition

SHAPES = list(product([1, 2, 3], [1, 2, 4], [(5,), (2, 2), (3, 1, 2)]))
"""(num_instances, tp_size, layer_partition)"""


@pytest.fixture(params=SHAPES, ids=str)
def shape(request):
    return request.param


def place(shape) -> Placement:
    num_instances, tp_size, partition = shape
    return Placement.uniform(
        num_instances=num_instances, tp_size=tp_size, layer_partition=partition
    )


def test_every_world_rank_sits_in_exactly_one_seat(shape):
    num_instances, tp_size, partition = shape
    placement = place(shape)
    assert placement.num_ranks == num_instances * tp_size * len(partition)
    seats = [placement.seat(rank) for rank in range(placement.num_ranks)]
    assert len(set(seats)) == len(seats)
    for rank, seat in enumerate(seats):
        assert placement.instances[seat.instance].stages[seat.pp_rank].ranks[seat.tp_rank] == rank


def test_ranks_run_through_instances_then_stages_then_tensor_parallel_places(shape):
    placement = place(shape)
    ranks = [rank for instance in placement.instances for rank in instance.ranks]
    assert ranks == list(range(placement.num_ranks))
    for instance in placement.instances:
        assert instance.leader == min(instance.ranks)
        assert placement.seat(instance.leader).pp_rank == 0


def test_the_stages_of_an_instance_hold_all_layers_in_order(shape):
    _, tp_size, partition = shape
    for instance in place(shape).instances:
        layers = [layer for stage in instance.stages for layer in stage.layers]
        assert layers == list(range(sum(partition)))
        assert tuple(len(stage.layers) for stage in instance.stages) == partition
        assert {len(stage.ranks) for stage in instance.stages} == {tp_size}


@pytest.mark.parametrize("rank", [-1, 8])
def test_a_rank_outside_the_world_has_no_seat(rank):
    placement = Placement.uniform(num_instances=2, tp_size=2, layer_partition=(1, 1))
    with pytest.raises(ValueError, match=f"rank {rank} is not part of the placement"):
        placement.seat(rank)


@pytest.mark.parametrize("head_layers", [0.0, 0.3, 2.4, 9.0, 100.0])
@pytest.mark.parametrize("num_stages", range(1, 5))
@pytest.mark.parametrize("num_layers", [4, 8, 13, 32])
def test_no_other_partition_has_a_faster_slowest_stage(num_layers, num_stages, head_layers):
    def slowest(partition: tuple[int, ...]) -> float:
        return max(*partition[:-1], partition[-1] + head_layers, 0)

    partition = balanced_partition(num_layers, num_stages, head_layers)
    assert len(partition) == num_stages
    assert sum(partition) == num_layers
    assert min(partition) >= 1
    cuts = combinations(range(1, num_layers), num_stages - 1)
    every = (tuple(b - a for a, b in pairwise((0, *cut, num_layers))) for cut in cuts)
    assert slowest(partition) == min(map(slowest, every))


def test_without_a_head_the_layers_are_spread_evenly():
    assert balanced_partition(13, 4, 0.0) == (4, 3, 3, 3)
    assert balanced_partition(32, 2, 2.4) == (17, 15)
