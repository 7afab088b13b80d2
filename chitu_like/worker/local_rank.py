"""This process's own part of an instance, from Load to the first batch: alike on every rank."""

from __future__ import annotations

import hashlib
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass

import torch

from chitu_like.config.tree import config_from_json
from chitu_like.core.errors import ConfigError
from chitu_like.core.model_spec import ModelSpec
from chitu_like.distributed.parallel_context import ParallelContext
from chitu_like.distributed.rendezvous import Joined
from chitu_like.worker.device import require_devices, set_thread_count
from chitu_like.worker.early_draws import draws_beside
from chitu_like.worker.memory_profile import plan_memory
from chitu_like.worker.messages import (
    Allocate,
    Allocated,
    Load,
    Loaded,
    Plan,
    Planned,
    Prepare,
    Prepared,
)
from chitu_like.worker.model_runner import ModelRunner
from chitu_like.worker.options import RunnerOptions

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Node:
    """The machine this rank shares with others.

    Attributes:
        local_rank: place among the ranks of the machine, and index of the CUDA device.
        num_local_ranks: how many there are.
    """

    local_rank: int = 0
    num_local_ranks: int = 1


class LocalRank:
    """Answers the orders that come before the first batch; `runner` then computes.

    Args:
        spec: of the model, as this rank's own files say.
        join: called with the kind of device: makes the groups of this rank's instance, as all its
            ranks do at once.
        node: where it runs.

    Attributes:
        node: as given.
    """

    def __init__(self, spec: ModelSpec, join: Callable[[str], Joined], node: Node) -> None:
        self._spec = spec
        self._join = join
        self.node = node
        self._prepared: Prepare | None = None
        self._joined: Joined | None = None
        self._runner: ModelRunner | None = None

    @property
    def runner(self) -> ModelRunner:
        """What computes; there once it is loaded."""
        assert self._runner is not None, "Load comes first"
        return self._runner

    def prepare(self, order: Prepare) -> Prepared:
        """See whether this rank can take part.

        Raises: ConfigError where the node lacks a device or has files of another model.
        """
        if digest(self._spec) != order.spec_digest:
            raise ConfigError(
                "models.ckpt_dir describes another model on this node than on the leader's: give "
                "every node the same files"
            )
        if order.device == "cuda":
            require_devices(self.node.num_local_ranks)
        self._prepared = order
        return Prepared()

    def load(self, order: Load, *, progress: bool = False) -> Loaded:
        """Join the others, build this rank's part of the model and fill it.

        Args:
            order: what the leader decided.
            progress: show a progress bar.

        Raises:
            CheckpointError: the checkpoint is not this model's.
            PeerError: the other ranks did not come.
        """
        assert self._prepared is not None, "Prepare comes first"
        device = self._prepared.device
        if device == "cuda":
            device = f"cuda:{self.node.local_rank}"
            torch.cuda.set_device(self.node.local_rank)
        self._joined = self._join(device)
        options = runner_options(order, self._spec, device, self._joined.parallel)
        num_bytes = self._spec.num_parameters() * options.torch_dtype.itemsize
        set_thread_count(
            self.node.num_local_ranks, weight_bytes=num_bytes // options.parallel.num_ranks
        )
        if (parallel := options.parallel).num_ranks > 1:
            logger.info(
                "process %d on %s, %s: stage %d of %d with layers %d to %d, place %d of %d in it",
                os.getpid(), socket.gethostname(), device,
                parallel.pp_rank, parallel.pp_size, options.layers[0], options.layers[-1],
                parallel.tp_rank, parallel.tp_size,
            )  # fmt: skip
        config = config_from_json(self._prepared.config)
        self._runner = ModelRunner.build(options, self._joined.pipeline)
        with draws_beside(self._runner):
            report = self._runner.load(
                config.models.ckpt_dir,
                load_format=config.models.load_format,
                seed=config.infer.seed,
                progress=progress,
            )
        return Loaded(report)

    def plan(self, order: Plan) -> Planned:
        """Find how many KV blocks fit. Raises: CapacityError where it does not fit."""
        memory = plan_memory(
            self.runner,
            order.memory_utilization,
            num_blocks=order.num_blocks,
            num_local_ranks=self.node.num_local_ranks,
        )
        return Planned(memory)

    def allocate(self, order: Allocate) -> Allocated:
        """Make the KV pool."""
        self.runner.allocate(
            order.num_blocks,
            num_host_blocks=order.num_host_blocks,
            max_reqs=order.max_reqs,
            max_seq_len=order.max_seq_len,
        )
        return Allocated()

    def leave(self) -> None:
        """Drop the groups, waiting for nobody."""
        if self._runner is not None:
            self._runner.drop_steps()
        if self._joined is not None:
            self._joined.leave()


def runner_options(
    order: Load, spec: ModelSpec, device: str, parallel: ParallelContext
) -> RunnerOptions:
    """What a rank's runner is built with.

    Args:
        order: what the leader decided.
        spec: of the model.
        device: of the rank, with its index where it is cuda.
        parallel: the rank's place.
    """
    return RunnerOptions(
        spec=spec,
        dtype=order.dtype,
        device=device,
        max_seq_len=order.max_seq_len,
        attn_type=order.attn_type,
        op_impl=order.op_impl,
        use_cuda_graph=order.use_cuda_graph,
        deterministic=order.deterministic,
        block_size=order.block_size,
        max_num_batched_tokens=order.max_num_batched_tokens,
        max_reqs=order.max_reqs,
        parallel=parallel,
    )


def digest(spec: ModelSpec) -> str:
    """Equal where two ranks' files describe the same model."""
    return hashlib.sha256(repr(spec).encode()).hexdigest()
