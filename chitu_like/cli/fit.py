"""Will it fit? The memory of every rank from shapes alone; no weight is touched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from chitu_like.config.device_facts import DeviceFacts
from chitu_like.config.resolved import ResolvedConfig
from chitu_like.config.settle import settle
from chitu_like.core.errors import CapacityError
from chitu_like.core.model_spec import ModelSpec
from chitu_like.distributed.parallel_context import ParallelContext
from chitu_like.instance import load_order
from chitu_like.layout import placement_of
from chitu_like.models.build import build_model
from chitu_like.worker.local_rank import runner_options
from chitu_like.worker.memory import (
    MemoryPlan,
    cpu_kv_limit,
    estimate_activation_bytes,
    plan_blocks,
)
from chitu_like.worker.options import RunnerOptions, make_backend
from chitu_like.worker.pipeline import most_sent_bytes


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The outcome.

    Attributes:
        memories: where the memory of each rank of an instance would go; no blocks where nothing fits.
        resolved: every `auto` decided, as far as it fits.
        num_host_blocks: KV blocks that a rank's share of the swap space would hold.
        fault: why it does not fit, or None.
    """

    memories: list[MemoryPlan]
    resolved: ResolvedConfig
    num_host_blocks: int
    fault: str | None


def fit_memory(resolved: ResolvedConfig, spec: ModelSpec, facts: DeviceFacts) -> Fit:
    """Plan the memory as the ranks' model runners will, their measurements replaced by estimates.

    On a CPU all ranks of all instances share this machine. CUDA devices are taken to be alike.

    Raises: UnsupportedError where the attention backend cannot serve the model.
    """
    config = resolved.config
    stages = _stages(resolved, spec)
    weights = [_weight_bytes(options) for options in stages]
    memories: list[MemoryPlan] = []
    fault: str | None = None
    for options, weight_bytes in zip(stages, weights, strict=True):
        total_bytes, other_bytes = facts.memory_bytes, facts.memory_bytes - facts.free_bytes
        if facts.device == "cpu":  # what the weights of all ranks leave is shared evenly
            loaded_bytes = sum(weights) * config.infer.tp_size * config.deploy.replicas
            left_bytes = (facts.free_bytes - loaded_bytes) // config.num_ranks
            total_bytes, other_bytes = max(0, left_bytes + weight_bytes), 0
        memory, its_fault = _plan(resolved, options, weight_bytes, total_bytes, other_bytes)
        memories += [memory] * config.infer.tp_size
        fault = fault or its_fault
    if fault is None:
        try:
            resolved = settle(resolved, min(memory.num_blocks for memory in memories))
        except CapacityError as error:
            fault = str(error)
    num_local_ranks = config.num_ranks
    if facts.device == "cuda":
        num_local_ranks = min(num_local_ranks, facts.num_devices)
    swap_bytes = resolved.swap_space_bytes // num_local_ranks
    return Fit(
        memories=memories,
        resolved=resolved,
        num_host_blocks=swap_bytes // max(memory.bytes_per_block for memory in memories),
        fault=fault,
    )


def _stages(resolved: ResolvedConfig, spec: ModelSpec) -> Sequence[RunnerOptions]:
    """The first rank of each stage, which holds as much as any other of it."""
    instance = placement_of(resolved.config, spec).instances[0]
    places = [
        ParallelContext.detached(instance, pp_rank=pp_rank, tp_rank=0)
        for pp_rank in range(len(instance.stages))
    ]
    order = load_order(resolved)
    return [runner_options(order, spec, resolved.device, place) for place in places]


def _weight_bytes(options: RunnerOptions) -> int:
    """Of a rank's parameters, which are made without memory."""
    model = build_model(
        options.spec,
        make_backend(options),
        options.torch_dtype,
        torch.device("meta"),
        parallel=options.parallel,
    )
    return sum(weight.numel() * weight.itemsize for _, weight in model.named_parameters())


def _plan(
    resolved: ResolvedConfig,
    options: RunnerOptions,
    weight_bytes: int,
    total_bytes: int,
    other_bytes: int,
) -> tuple[MemoryPlan, str | None]:
    """A rank's plan, and why nothing fits."""
    infer = resolved.config.infer
    activation_bytes = estimate_activation_bytes(
        options.spec,
        dtype=options.torch_dtype,
        num_tokens=options.max_num_batched_tokens,
        num_samples=options.max_reqs,
    )
    if not options.parallel.is_last_stage:
        activation_bytes += most_sent_bytes(
            options.parallel.pp_size,
            num_tokens=options.max_num_batched_tokens,
            hidden_size=options.spec.hidden_size,
            dtype=options.torch_dtype,
        )
    kv_limit_bytes = None
    if resolved.device == "cpu":
        kv_limit_bytes = cpu_kv_limit(
            options.kv_spec, max_reqs=options.max_reqs, max_seq_len=options.max_seq_len
        )
    try:
        memory = plan_blocks(
            options.kv_spec,
            total_bytes=total_bytes,
            other_bytes=other_bytes,
            weight_bytes=weight_bytes,
            activation_bytes=activation_bytes,
            graph_bytes=0,
            memory_utilization=infer.memory_utilization,
            kv_limit_bytes=kv_limit_bytes,
            num_blocks=None if infer.num_blocks == "auto" else infer.num_blocks,
        )
    except CapacityError as error:
        nothing = MemoryPlan(
            total_bytes=total_bytes,
            other_bytes=other_bytes,
            weight_bytes=weight_bytes,
            activation_bytes=activation_bytes,
            graph_bytes=0,
            kv_bytes=0,
            bytes_per_block=options.kv_spec.bytes_per_block,
            num_blocks=0,
            reason="nothing is left",
        )
        return nothing, str(error)
    return memory, None
