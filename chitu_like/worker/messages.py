"""What an instance's leader and its other ranks say to each other over the control channel.

The leader sends ScheduledBatch and the verbs below, in one order for all ranks; a rank works them off
one after the other. Msgpack of msgspec structs, never pickle.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from chitu_like.core.batch import ScheduledBatch
from chitu_like.core.output import StepOutput


class Load(msgspec.Struct, frozen=True, tag="load"):
    """Build the model, read the weights and answer with Loaded.

    Attributes:
        config: the leader's configuration as `config/tree.py` writes it; it wins over the rank's own.
        decided: key -> value of what the leader resolved and every rank must share.
        spec_digest: of the leader's ModelSpec; a rank whose files say otherwise fails.
    """

    config: str
    decided: dict[str, str | int | float | bool]
    spec_digest: str


class Allocate(msgspec.Struct, frozen=True, tag="allocate"):
    """Make the KV pool and the slots, and answer with Allocated. Arguments of ModelRunner.allocate."""

    num_blocks: int
    num_host_blocks: int
    max_reqs: int
    max_seq_len: int


class Execute(msgspec.Struct, frozen=True, tag="execute"):
    """Compute a batch. The last stage's first rank answers with Executed."""

    batch: ScheduledBatch


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """Drop everything and end with exit code 0."""


class Loaded(msgspec.Struct, frozen=True, tag="loaded"):
    """The weights are there, and so much room is left.

    Attributes:
        num_blocks: KV blocks that fit on this rank.
        weight_bytes: of its weights.
        num_bytes, load_s: bytes read from files and the seconds that took; 0 where none were.
        memory: fields of its MemoryPlan, for the table.
    """

    num_blocks: int
    weight_bytes: int
    num_bytes: int
    load_s: float
    memory: dict[str, int | str]


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


ToWorker: TypeAlias = Load | Allocate | Execute | Stop
FromWorker: TypeAlias = Loaded | Allocated | Executed | Failed
