"""What an instance's leader and its other ranks say to each other over the control channel.

The leader sends the verbs of ToWorker, in one order for all ranks; a rank works them off one after the
other: Prepare, Load, Plan, Allocate, then any number of Execute, then Stop. Msgpack of msgspec
structs, never pickle.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from chitu_like.checkpoint.loader import LoadReport
from chitu_like.core.batch import ScheduledBatch
from chitu_like.core.output import StepOutput
from chitu_like.worker.memory import MemoryPlan


class Prepare(msgspec.Struct, frozen=True, tag="prepare"):
    """See whether this rank can take part, and answer with Prepared; nothing is loaded yet.

    Attributes:
        config: the leader's configuration as `config/tree.py` writes it, without secrets; it wins over
            the rank's own.
        spec_digest: `digest` of the leader's ModelSpec; a rank whose files say otherwise fails.
        device: kind of device that all ranks compute on.
    """

    config: str
    spec_digest: str
    device: str


class Load(msgspec.Struct, frozen=True, tag="load"):
    """All ranks are prepared: join them, build the model, read the weights, answer with Loaded.

    Attributes are what the leader resolved, as in RunnerOptions.
    """

    dtype: str
    max_seq_len: int
    attn_type: str
    op_impl: str
    use_cuda_graph: bool
    deterministic: bool
    block_size: int
    max_num_batched_tokens: int
    max_reqs: int


class Plan(msgspec.Struct, frozen=True, tag="plan"):
    """All ranks have loaded: find how many KV blocks fit and answer with Planned.

    Attributes are arguments of `plan_memory`.
    """

    memory_utilization: float
    num_blocks: int | None


class Allocate(msgspec.Struct, frozen=True, tag="allocate"):
    """Make the KV pool and the slots, and answer with Allocated. Arguments of ModelRunner.allocate."""

    num_blocks: int
    num_host_blocks: int
    max_reqs: int
    max_seq_len: int


class Execute(msgspec.Struct, frozen=True, tag="execute"):
    """Compute a batch. The rank that samples answers with Executed."""

    batch: ScheduledBatch


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """Drop everything and end with exit code 0."""


class Prepared(msgspec.Struct, frozen=True, tag="prepared"):
    """This rank can take part."""


class Loaded(msgspec.Struct, frozen=True, tag="loaded"):
    """The weights are there; `report` says how, None where none were read."""

    report: LoadReport | None


class Planned(msgspec.Struct, frozen=True, tag="planned"):
    """So much room is left on this rank."""

    memory: MemoryPlan


class Allocated(msgspec.Struct, frozen=True, tag="allocated"):
    """Batches are welcome."""


class Executed(msgspec.Struct, frozen=True, tag="executed"):
    """What a batch gave."""

    output: StepOutput


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The rank ends.

    Attributes:
        reason: one sentence; the trace is in the rank's own log.
        is_users_mistake: it is about the configuration or the checkpoint.
        step_id: the batch it was computing, or None.
    """

    reason: str
    is_users_mistake: bool
    step_id: int | None = None


ToWorker: TypeAlias = Prepare | Load | Plan | Allocate | Execute | Stop
FromWorker: TypeAlias = Prepared | Loaded | Planned | Allocated | Executed | Failed
