"""How many KV blocks a rank has room for: by running the largest steps, or on a CPU from shapes."""

from __future__ import annotations

import torch

from chitu_like.core.batch import ScheduledBatch
from chitu_like.ops.triton.draw_tiling import row_counts
from chitu_like.worker import memory
from chitu_like.worker.device import available_host_bytes
from chitu_like.worker.model_runner import ModelRunner
from chitu_like.worker.options import RunnerOptions
from chitu_like.worker.profile_batch import make_profile_batch
from chitu_like.worker.recorded_steps import StepSizes


def plan_memory(
    runner: ModelRunner,
    memory_utilization: float = 0.9,
    *,
    num_blocks: int | None = None,
    num_local_ranks: int = 1,
) -> memory.MemoryPlan:
    """Divide the memory of a rank's device, its weights already loaded.

    Args:
        runner: loaded; whatever it had allocated is gone afterwards. All ranks of an instance plan
            at once, since the steps that are measured need them all.
        memory_utilization: share of the device's memory to plan for.
        num_blocks: fixes the pool; only checked then.
        num_local_ranks: ranks that share this host's memory, all of them loaded.

    Raises: CapacityError where it does not fit.
    """
    if runner.device.type == "cpu":
        return _plan_by_shapes(runner, memory_utilization, num_blocks, num_local_ranks)
    # Before others are counted: NCCL takes its buffers with the first messages.
    activation_bytes = runner.most_sent_bytes() + _activation_bytes(runner)
    graph_bytes = _graph_bytes(runner) if runner.records_steps else 0
    runner.free()
    total_bytes, other_bytes = memory.free_cuda_bytes(runner.device)
    return memory.plan_blocks(
        runner.kv_spec,
        total_bytes=total_bytes,
        other_bytes=other_bytes,
        weight_bytes=torch.cuda.memory_allocated(runner.device),
        activation_bytes=activation_bytes,
        graph_bytes=graph_bytes,
        memory_utilization=memory_utilization,
        num_blocks=num_blocks,
    )


def _plan_by_shapes(
    runner: ModelRunner, memory_utilization: float, num_blocks: int | None, num_local_ranks: int
) -> memory.MemoryPlan:
    options = runner.options
    activation_bytes = memory.estimate_activation_bytes(
        options.spec,
        dtype=options.torch_dtype,
        num_tokens=options.max_num_batched_tokens,
        num_samples=options.max_reqs,
    )
    return memory.plan_blocks(
        runner.kv_spec,
        total_bytes=available_host_bytes() // num_local_ranks + runner.weight_bytes,
        other_bytes=0,
        weight_bytes=runner.weight_bytes,
        activation_bytes=runner.most_sent_bytes() + activation_bytes,
        graph_bytes=0,
        memory_utilization=memory_utilization,
        kv_limit_bytes=memory.cpu_kv_limit(
            runner.kv_spec, max_reqs=options.max_reqs, max_seq_len=options.max_seq_len
        ),
        num_blocks=num_blocks,
    )


def _activation_bytes(runner: ModelRunner) -> int:
    """Peak of the largest steps beside weights and cache: many requests, then one long prompt.

    The many want penalties and log-probabilities; the last wants neither, as most will. Tokens that
    are counted for penalties stay in memory beside it, as they would.
    """
    options = runner.options
    max_reqs = min(options.max_reqs, options.max_num_batched_tokens)
    lengths = {  # tokens of each request, by the number of requests
        num_reqs: min(options.max_num_batched_tokens // num_reqs, options.max_seq_len)
        for num_reqs in (max_reqs, 1)
    }
    batches = _drawn_otherwise(max_reqs, options) + [
        make_profile_batch(num_reqs, length, options.block_size, is_simple=num_reqs == 1)
        for num_reqs, length in lengths.items()
    ]
    num_blocks = max(n * runner.kv_spec.blocks_for(length) for n, length in lengths.items())
    runner.allocate(num_blocks, max_seq_len=lengths[1], sizes=StepSizes())
    torch.cuda.reset_peak_memory_stats(runner.device)
    before = torch.cuda.memory_allocated(runner.device)
    for batch in batches:
        runner.execute(batch)
    peak = torch.cuda.max_memory_allocated(runner.device) - before
    runner.free()
    torch.cuda.empty_cache()
    return peak


def _drawn_otherwise(max_reqs: int, options: RunnerOptions) -> list[ScheduledBatch]:
    """Steps of one token a request whose tokens other kernels draw than those of the largest steps.

    What would else be compiled while a request waits. Kernels differ by the number of rows and by the
    logits' dtype: float32 for all that `Sampler.draw` alone cannot serve, log-probabilities for one.
    """
    ways = {
        (num_reqs, is_simple) for num_reqs in row_counts(max_reqs) for is_simple in (True, False)
    }
    return [
        make_profile_batch(num_reqs, 1, options.block_size, is_simple=is_simple)
        for num_reqs, is_simple in sorted(ways - {(1, True), (max_reqs, max_reqs == 1)})
    ]


def _graph_bytes(runner: ModelRunner) -> int:
    """What all recorded steps take, extrapolated from the two largest of a kind; and their padding block.

    The largest take the memory that all of them share. The second show what each of the others needs
    besides, nodes of graphs above all, and no other needs more. What is taken once and stays, as
    compiled kernels do, is taken before: it would hide some of that.
    """
    sizes = StepSizes.of(runner.options, runner.options.max_reqs)
    runner.allocate(1, sizes=sizes.largest(1))
    taken = []
    for measured in (sizes.largest(1), sizes.largest(2)):
        runner.free()
        before, _ = _free_bytes(runner.device)
        runner.allocate(1, sizes=measured)
        taken.append(before - _free_bytes(runner.device)[0])
    return taken[0] + (len(sizes) - 1) * max(0, taken[1] - taken[0])


def _free_bytes(device: torch.device) -> tuple[int, int]:
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)
