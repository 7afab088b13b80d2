"""What torchrun says of this process, and whether that is what the configuration needs. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from chitu_like.config.schema import ServeConfig
from chitu_like.core.errors import ConfigError

MEETING_TIMEOUT_S = 300.0
"""Nodes may start minutes apart, and read torch from a slow disk. It also bounds one collective; an
instance may be idle for longer."""


@dataclass(frozen=True, kw_only=True)
class TorchrunRank:
    """One of torchrun's processes; without torchrun the only one.

    Attributes:
        rank: of the world.
        world_size: ranks of all nodes.
        local_rank: place among the ranks of this node.
        num_local_ranks: ranks of this node.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    num_local_ranks: int = 1

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> TorchrunRank:
        """Read torchrun's variables."""
        return cls(
            rank=int(environ.get("RANK", "0")),
            world_size=int(environ.get("WORLD_SIZE", "1")),
            local_rank=int(environ.get("LOCAL_RANK", "0")),
            num_local_ranks=int(environ.get("LOCAL_WORLD_SIZE", "1")),
        )

    def check(self, config: ServeConfig, *, program: str = "-m chitu_like") -> None:
        """Compare the ranks that there are with those that the configuration needs.

        Args:
            config: of the service; the model can be cut like that.
            program: what torchrun would start, for the message.

        Raises: ConfigError where they are more or fewer.
        """
        needed, infer = config.num_ranks, config.infer
        if self.world_size == needed:
            return
        started, remedy = f"torchrun started {self.world_size} ranks", f"--nproc_per_node {needed}"
        if self.world_size == 1:
            started, remedy = "there is one rank", f"torchrun --nproc_per_node {needed} {program}"
        elif self.world_size != self.num_local_ranks:
            remedy = f"as many nodes and ranks on each (--nproc_per_node) as make {needed}"
        if self.world_size > 1:
            remedy += f", or sizes whose product is {self.world_size}"
        raise ConfigError(
            f"{started} but infer.tp_size={infer.tp_size}, infer.pp_size={infer.pp_size} and "
            f"deploy.replicas={config.deploy.replicas} need {needed}: use {remedy}"
        )
