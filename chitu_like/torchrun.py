"""What torchrun says of this process, and whether that is what the configuration needs. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from chitu_like.config.schema import ServeConfig
from chitu_like.core.errors import ConfigError


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

    def check(self, config: ServeConfig) -> None:
        """Raise ConfigError where there are not as many ranks as the configuration needs."""
        if self.world_size != config.num_ranks:
            raise ConfigError(
                f"torchrun started {self.world_size} ranks but infer.tp_size={config.infer.tp_size}, "
                f"infer.pp_size={config.infer.pp_size} and deploy.replicas={config.deploy.replicas} "
                f"need {config.num_ranks}: use --nproc_per_node {config.num_ranks}"
            )
