"""All-reduce through the peers' memory: the sum, on all ranks the same bits, however often.

What one rank does stands in symmetric_rank.py: it needs Triton.
"""

import datetime

import pytest
import torch
import torch.distributed as dist
from distributed.ranks import run_ranks

from chitu_like.distributed.collectives import SoloGroup, TorchGroup
from chitu_like.distributed.symmetric import make_tp_group
from chitu_like.ops.norm import add_rms_norm

WORLD_SIZES = [
    pytest.param(2, marks=pytest.mark.multi_gpu(count=2)),
    pytest.param(4, marks=pytest.mark.multi_gpu(count=4)),
    pytest.param(8, marks=pytest.mark.multi_gpu(count=8)),
]


def test_on_a_cpu_the_group_is_one_of_torch() -> None:
    dist.init_process_group(
        "gloo",
        store=dist.HashStore(),
        rank=0,
        world_size=1,
        timeout=datetime.timedelta(seconds=20),
    )
    try:
        group = make_tp_group(dist.group.WORLD, torch.device("cpu"))
    finally:
        dist.destroy_process_group()
    assert type(group) is TorchGroup


def test_a_group_without_a_fused_kernel_reduces_and_then_norms() -> None:
    x, residual, weight = torch.randn(3, 8), torch.randn(3, 8), torch.randn(8)
    expected_residual = residual.clone()
    expected = add_rms_norm(x, expected_residual, weight, 1e-5)
    found = SoloGroup().all_reduce_add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(found, expected)
    assert torch.equal(residual, expected_residual)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_all_ranks_get_the_same_sum_in_every_order_of_calls(world_size: int) -> None:
    from distributed.symmetric_rank import run  # wants Triton, which only comes with CUDA

    run_ranks(run, world_size, world_size)
