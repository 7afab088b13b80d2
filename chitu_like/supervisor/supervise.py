"""From a configuration with several instances to this process's supervisor."""

from __future__ import annotations

from rich.console import Console

from chitu_like.config.schema import ServeConfig
from chitu_like.config.secrets import secrets_of
from chitu_like.config.tree import config_to_json
from chitu_like.core.logging import configure_logging, start_time
from chitu_like.front_end_process import FrontEndProcess
from chitu_like.layout import placement_of
from chitu_like.model_files import ModelFiles
from chitu_like.supervisor.follower import Follower
from chitu_like.supervisor.head import HeadSupervisor
from chitu_like.supervisor.messages import Begin

MIN_SILENCE_S = 30.0
"""A supervisor sleeps all day; one that is silent for so long has been stopped, or its node has."""


def supervise(config: ServeConfig, files: ModelFiles, rank: int) -> int:
    """Run this rank as a child until the job is over.

    Args:
        config: of the whole service.
        files: of the model.
        rank: of the world; 0 also starts the front end.

    Returns: the exit code: 0 drained, 1 something broke, 2 the user's mistake.
    Raises: ConfigError where the front end cannot start with this configuration.
    """
    begin = Begin(config_to_json(config))
    silence_s = max(MIN_SILENCE_S, config.serve.stall_timeout_s)
    if rank != 0:
        configure_logging(rank=f"supervisor{rank}", secrets=secrets_of(config))
        return Follower(rank, silence_s=silence_s).run(begin)
    started = start_time()
    configure_logging(
        rank="supervisor", log_dir=config.log_dir, started=started, secrets=secrets_of(config)
    )
    console = Console()
    placement = placement_of(config, files.spec)
    with FrontEndProcess(config, files, started, is_supervised=True) as front_end:
        console.print(f"listening on {front_end.url}, loading the model ...", highlight=False)

        def announce() -> None:
            console.print(front_end.invitation, highlight=False, soft_wrap=True)

        head = HeadSupervisor(
            placement, front_end, started, silence_s=silence_s, when_ready=announce
        )
        return head.run(begin)
