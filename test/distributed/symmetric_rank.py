"""One rank of test_symmetric.py: every check ends in an assertion here."""

import random
from collections.abc import Callable

import torch
import torch.distributed as dist
from tolerance import assert_op_close
from torch import Tensor

from chitu_like.distributed.symmetric import make_tp_group
from chitu_like.distributed.symmetric_group import SymmetricGroup, slot_bytes
from chitu_like.ops.norm import add_rms_norm
from chitu_like.ops.triton.all_reduce import Shots, max_message_bytes

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
NUM_CALLS = 300


def run(rank: int, world_size: int) -> None:
    """Check everything, one thing after the other."""
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    process_group = dist.new_group(range(world_size), backend="nccl")
    one = max_message_bytes(Shots.ONE, world_size, slot_bytes(world_size))
    two = max_message_bytes(Shots.TWO, world_size, slot_bytes(world_size))
    for longest in ((one, one), (0, two), (32 << 10, two)):
        group = SymmetricGroup(process_group, device, longest)
        for dtype in DTYPES:
            check_sums(group, dtype)
            check_norm(group, dtype)
        check_others_go_through_nccl(group)
        check_special_numbers(group)
        check_many_calls(group)
        check_graphs(group)
    assert isinstance(make_tp_group(process_group, device), SymmetricGroup)


def drawn(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Random numbers, others on each rank."""
    return torch.randn(shape, device="cuda").to(dtype)


def assert_same_bits(group: SymmetricGroup, x: Tensor) -> None:
    """Equal on all ranks, NaN for NaN."""
    bits = x.view(torch.uint8)
    for other in group.all_gather(bits):
        assert torch.equal(other, bits)


def check_sums(group: SymmetricGroup, dtype: torch.dtype) -> None:
    """Right to one rounding, for messages of one vector and more."""
    torch.manual_seed(17 + group.rank)
    for numel in (8, 1000, 1024, 4096 + 8, 5120 * 3, 200_000, 262_144):
        x = drawn((numel,), dtype)
        expected = group.all_gather(x).double().sum(0).to(dtype)
        found = group.all_reduce(x)
        assert_op_close(found, expected)
        assert_same_bits(group, found)


def check_others_go_through_nccl(group: SymmetricGroup) -> None:
    """Too long, not made of whole vectors, or of another dtype."""
    for x in (
        torch.ones(5 << 20, device="cuda"),
        torch.ones(7, device="cuda"),
        torch.ones(8, 8, device="cuda", dtype=torch.float64),
        torch.ones(64, dtype=torch.int64, device="cuda"),
    ):
        assert (group.all_reduce(x) == group.size).all()


def check_norm(group: SymmetricGroup, dtype: torch.dtype) -> None:
    """The fused kernel is the all-reduce, and then the op."""
    torch.manual_seed(23 + group.rank)
    for num_tokens, hidden_size in ((1, 8192), (33, 5120), (129, 1024), (7, 64)):
        x = drawn((num_tokens, hidden_size), dtype)
        residual = group.broadcast(drawn((num_tokens, hidden_size), dtype), 0)
        weight = group.broadcast(drawn((hidden_size,), dtype), 0)
        expected_residual = residual.clone()
        reduced = group.all_reduce(x.clone())
        expected = add_rms_norm(reduced, expected_residual, weight, 1e-5)
        found = group.all_reduce_add_rms_norm(x, residual, weight, 1e-5)
        assert torch.equal(residual, expected_residual)
        assert_op_close(found, expected)
        assert_same_bits(group, found)


def check_special_numbers(group: SymmetricGroup) -> None:
    """The NaN that stands for 'nothing yet' can be sent like any number."""
    for dtype, bits in ((torch.bfloat16, torch.int16), (torch.float32, torch.int32)):
        x = torch.full((64,), -1, dtype=bits, device="cuda").view(dtype)
        x[8:16], x[16:24], x[24:] = float("inf"), -0.0, 1.0
        found = group.all_reduce(x)
        assert found[:8].isnan().all()
        assert (found[8:16] == float("inf")).all()
        assert (found[16:24] == 0).all()
        assert (found[24:] == group.size).all()


def counted(group: SymmetricGroup, call: int, numel: int, dtype: torch.dtype) -> tuple[Tensor, int]:
    """A message of one small number, exact in every dtype, and the sum over the ranks."""
    numbers = [(call + 3 * rank) % 8 for rank in range(group.size)]
    x = torch.full((numel,), numbers[group.rank], dtype=dtype, device="cuda")
    return x, sum(numbers)


def check_many_calls(group: SymmetricGroup) -> None:
    """Calls of all lengths in a row, each rank late by its own times: nothing of one is in another."""
    lengths, delays = random.Random(5), random.Random(group.rank)
    faults = torch.zeros((), dtype=torch.int64, device="cuda")
    for call in range(NUM_CALLS):
        dtype = DTYPES[lengths.randrange(3)]
        x, expected = counted(group, call, 8 * lengths.randint(1, 64 << 10), dtype)
        if delays.random() < 0.3:
            torch.cuda._sleep(delays.randrange(200_000))  # cycles
        faults += (group.all_reduce(x) != expected).sum()
    assert int(faults) == 0


def check_graphs(group: SymmetricGroup) -> None:
    """Graphs of odd numbers of calls, replayed in any order between calls without one."""
    replays, sources, results = [], [], []
    for numel in (4096, 64 * 5120, 16):
        source, _ = counted(group, 1, numel, torch.bfloat16)
        result = torch.empty_like(source)
        replays.append(captured(lambda s=source, r=result: r.copy_(group.all_reduce(s.clone()))))
        sources.append(source)
        results.append(result)
    order, faults = random.Random(3), torch.zeros((), dtype=torch.int64, device="cuda")
    for call in range(NUM_CALLS):
        which = order.randrange(3)
        message, expected = counted(group, call, sources[which].numel(), torch.bfloat16)
        sources[which].copy_(message)
        replays[which]()
        faults += (results[which] != expected).sum()
        if order.random() < 0.3:
            x, expected = counted(group, call, 8 * order.randint(1, 4096), torch.float32)
            faults += (group.all_reduce(x) != expected).sum()
    assert int(faults) == 0


def captured(call: Callable[[], object]) -> Callable[[], None]:
    """A graph of one call, after one without: kernels are compiled outside of a capture."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        call()
    return graph.replay
