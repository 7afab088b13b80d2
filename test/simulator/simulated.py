"""Small instances to simulate with, whose costs are known in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from chitu_like.cluster.cost_model import BatchShape, StepCost
from chitu_like.simulator.instance import InstanceShape
from chitu_like.simulator.workload import PlannedRequest


@dataclass(frozen=True)
class LinearCost:
    """So many seconds a step, and on top for each prompt token and each decode."""

    step_s: float = 0.0
    prompt_token_s: float = 0.0
    decode_s: float = 0.0

    def seconds(self, shape: BatchShape) -> float:
        tokens_s = shape.num_prefill_tokens * self.prompt_token_s
        return self.step_s + tokens_s + shape.num_decodes * self.decode_s


def instance_shape(
    *stages: StepCost,
    num_blocks: int = 1000,
    block_size: int = 4,
    max_reqs: int = 16,
    overlap: bool = True,
    enable_prefix_caching: bool = True,
    num_host_blocks: int = 0,
    block_copy_s: float = 0.0,
) -> InstanceShape:
    return InstanceShape(
        stages=stages or (LinearCost(step_s=0.01, prompt_token_s=1e-4),),
        num_blocks=num_blocks,
        block_size=block_size,
        max_reqs=max_reqs,
        overlap=overlap,
        enable_prefix_caching=enable_prefix_caching,
        num_host_blocks=num_host_blocks,
        block_copy_s=block_copy_s,
    )


def requests_at(
    times: Sequence[float], input_len: int = 10, output_len: int = 5
) -> list[PlannedRequest]:
    return [
        PlannedRequest(index=i, arrival_s=time_s, input_len=input_len, output_len=output_len)
        for i, time_s in enumerate(times)
    ]
