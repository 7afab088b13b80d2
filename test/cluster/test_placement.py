"""Placement over every small shape: each rank once, each layer once, neighbours together."""

from __future__ import annotations

from itertools import pairwise, product

import pytest

from chitu_like.cluster.placement import Placement, even_partition

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


@pytest.mark.parametrize("num_stages", range(1, 9))
@pytest.mark.parametrize("num_layers", [8, 13, 32, 61])
def test_an_even_partition_gives_the_last_stage_no_more_than_any_other(num_layers, num_stages):
    partition = even_partition(num_layers, num_stages)
    assert len(partition) == num_stages
    assert sum(partition) == num_layers
    assert max(partition) - min(partition) <= 1
    assert all(left >= right for left, right in pairwise(partition))
