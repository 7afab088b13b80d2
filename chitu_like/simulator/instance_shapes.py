"""Instances as the keys of serving describe them, at a profile's cost.

What is `auto` in these keys becomes what it becomes on a GPU that serves, as far as files decide it
(config/resolve.py); the number of KV blocks is what the profile says.
"""

from __future__ import annotations

from dataclasses import dataclass

from chitu_like.cluster.cost_model import ModelFacts, StepCost
from chitu_like.cluster.placement import balanced_partition
from chitu_like.cluster.profile import Profile
from chitu_like.cluster.topology import Link
from chitu_like.config.planning import PlanningConfig
from chitu_like.config.resolve import (
    CUDA_BATCHED_TOKENS,
    CUDA_BLOCK_SIZE,
    CUDA_CHUNK,
    CUDA_SWAP_GIB,
    MAX_QUEUED_REQUESTS,
    MAX_QUEUED_TOKENS,
)
from chitu_like.core.errors import CapacityError, ConfigError
from chitu_like.scheduler.mlfq import Quanta
from chitu_like.simulator.disagg import Crossing
from chitu_like.simulator.instance import InstanceShape

GIB = 2.0**30
MAX_REQS = 256
MAX_SEQ_LEN = 1 << 24


@dataclass(frozen=True, kw_only=True)
class InstanceSource:
    """What instances are made of.

    Attributes:
        profile: costs.
        model: of the profile.
        device: of the profile.
        config: the keys of serving are looked at.
        link: between neighbouring stages of a pipeline; None: they are side by side.
    """

    profile: Profile
    model: str
    device: str
    config: PlanningConfig
    link: Link | None = None

    @property
    def facts(self) -> ModelFacts:
        """Of the model."""
        return self.profile.model(self.model)

    def shape(self, *, tp: int, pp: int) -> InstanceShape:
        """An instance of tp x pp devices.

        Raises:
            ConfigError: the degrees do not divide the model, or the profile does not know them.
            CapacityError: the weights leave no room for a KV block.
        """
        partition = self._partition(tp, pp)
        infer, scheduler, facts = self.config.infer, self.config.scheduler, self.facts
        block_size = CUDA_BLOCK_SIZE if infer.block_size == "auto" else infer.block_size
        num_blocks = infer.num_blocks
        if num_blocks == "auto":
            num_blocks = self.num_blocks(tp=tp, pp=pp, block_size=block_size)
        batched, chunk = self._step_tokens()
        tokens, requests = scheduler.max_queued_tokens, scheduler.max_queued_requests
        block_bytes = facts.kv_bytes_per_token * block_size * max(partition) / tp
        swap_gib = CUDA_SWAP_GIB if infer.swap_space_gib == "auto" else infer.swap_space_gib
        return InstanceShape(
            stages=self._stages(tp, partition),
            num_blocks=num_blocks,
            block_size=block_size,
            devices_per_stage=tp,
            max_reqs=MAX_REQS if infer.max_reqs == "auto" else infer.max_reqs,
            max_seq_len=MAX_SEQ_LEN if infer.max_seq_len == "auto" else infer.max_seq_len,
            max_num_batched_tokens=batched,
            prefill_chunk_size=chunk,
            policy=scheduler.type,
            overlap=infer.schedule_overlap,
            enable_prefix_caching=infer.enable_prefix_caching,
            num_host_blocks=int(swap_gib * GIB / block_bytes) if block_bytes else 0,
            block_copy_s=block_bytes / self.config.simulate.swap_bytes_per_s,
            starvation_s=scheduler.starvation_s,
            max_queued_requests=MAX_QUEUED_REQUESTS if requests == "auto" else requests,
            max_queued_tokens=MAX_QUEUED_TOKENS if tokens == "auto" else tokens,
            quanta=Quanta(
                first_steps=scheduler.mlfq_quantum_steps,
                prompt_tokens_per_step=scheduler.mlfq_prompt_tokens_per_step,
            ),
            host=self.profile.host_cost(self.model, self.device),
            links=() if self.link is None else (self.link,) * (pp - 1),
            activation_bytes=facts.activation_bytes,
        )

    def num_blocks(self, *, tp: int, pp: int, block_size: int) -> int:
        """KV blocks that every stage has room for.

        Raises: CapacityError where there is none.
        """
        partition = self._partition(tp, pp)
        found = min(
            self.profile.kv_blocks(
                self.model,
                self.device,
                tp=tp,
                num_layers=layers,
                is_last=index == pp - 1,
                utilization=self.config.infer.memory_utilization,
                block_size=block_size,
            )
            for index, layers in enumerate(partition)
        )
        if found < 1:
            raise CapacityError(
                f"{self.model} does not fit {tp * pp} {self.device} (tp {tp}, pp {pp}): its weights "
                "leave no room for a KV block; raise infer.tp_size or infer.pp_size"
            )
        return found

    def crossing(self, link: Link) -> Crossing:
        """How requests get from prefill to decode over a link between their instances."""
        facts = self.facts
        if not facts.kv_bytes_per_token:
            raise ConfigError(
                f"{self.model}: kv_bytes_per_token is 0 in the profile's model.json: say how many "
                "bytes a layer keeps of a token, since they are sent from prefill to decode"
            )
        return Crossing(link=link, kv_bytes_per_token=facts.kv_bytes_per_token * facts.num_layers)

    def _step_tokens(self) -> tuple[int, int]:
        """(max_num_batched_tokens, prefill_chunk_size)."""
        batched = self.config.scheduler.max_num_batched_tokens
        chunk = self.config.infer.prefill_chunk_size
        most = max(CUDA_BATCHED_TOKENS, 0 if chunk == "auto" else chunk)
        budget = most if batched == "auto" else batched
        return budget, min(CUDA_CHUNK, budget) if chunk == "auto" else chunk

    def _partition(self, tp: int, pp: int) -> tuple[int, ...]:
        facts = self.facts
        if pp > facts.num_layers:
            raise ConfigError(
                f"infer.pp_size={pp}: {self.model} has {facts.num_layers} layers: use at most that"
            )
        if facts.num_heads % tp:
            raise ConfigError(
                f"infer.tp_size={tp} does not divide the {facts.num_heads} heads of {self.model}"
            )
        head_layers = facts.embedding_bytes / 2 / facts.layer_bytes  # the other half are embeddings
        return balanced_partition(facts.num_layers, pp, head_layers)

    def _stages(self, tp: int, partition: tuple[int, ...]) -> tuple[StepCost, ...]:
        last = len(partition) - 1
        return tuple(
            self.profile.step_cost(
                self.model,
                self.device,
                tp=tp,
                num_layers=layers,
                is_first=index == 0,
                is_last=index == last,
            )
            for index, layers in enumerate(partition)
        )
