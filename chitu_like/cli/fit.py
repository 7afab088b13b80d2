"""Will it fit? The memory of a configuration from shapes alone; no weight is touched."""

from __future__ import annotations

from dataclasses import dataclass

from chitu_like.config.device_facts import DeviceFacts
from chitu_like.config.resolved import ResolvedConfig
from chitu_like.config.settle import settle
from chitu_like.core.errors import CapacityError
from chitu_like.core.model_spec import ModelSpec
from chitu_like.instance import runner_options
from chitu_like.worker.memory import (
    MemoryPlan,
    cpu_kv_limit,
    estimate_activation_bytes,
    plan_blocks,
)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The outcome.

    Attributes:
        memory: where the memory would go; no blocks where nothing fits.
        resolved: every `auto` decided, as far as it fits.
        fault: why it does not fit, or None.
    """

    memory: MemoryPlan
    resolved: ResolvedConfig
    fault: str | None

    @property
    def num_host_blocks(self) -> int:
        """KV blocks that the swap space would hold."""
        return self.resolved.swap_space_bytes // self.memory.bytes_per_block


def fit_memory(resolved: ResolvedConfig, spec: ModelSpec, facts: DeviceFacts) -> Fit:
    """Plan the memory as the model runner will, its measurements replaced by estimates."""
    options = runner_options(resolved, spec)
    on_cpu = facts.device == "cpu"
    total_bytes = facts.free_bytes if on_cpu else facts.memory_bytes
    other_bytes = total_bytes - facts.free_bytes
    weight_bytes = spec.num_parameters() * options.torch_dtype.itemsize
    activation_bytes = estimate_activation_bytes(
        spec,
        dtype=options.torch_dtype,
        num_tokens=options.max_num_batched_tokens,
        num_samples=options.max_reqs,
    )
    infer = resolved.config.infer
    kv_limit_bytes = None
    if on_cpu:
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
            kv_bytes=0,
            bytes_per_block=options.kv_spec.bytes_per_block,
            num_blocks=0,
            reason="nothing is left",
        )
        return Fit(memory=nothing, resolved=resolved, fault=str(error))
    try:
        return Fit(memory=memory, resolved=settle(resolved, memory.num_blocks), fault=None)
    except CapacityError as error:
        return Fit(memory=memory, resolved=resolved, fault=str(error))
