"""`python -m chitu_like.supervisor.rank FD`: one rank, as the child of its supervisor.

FD is its end of the link. It finds the other ranks through torchrun's store, tells its supervisor
where the head is, and then leads its instance or follows its leader.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console

from chitu_like.config.schema import ServeConfig
from chitu_like.config.secrets import secrets_of
from chitu_like.config.tree import config_from_json
from chitu_like.core.ending import DONE, FAILED, USER_MISTAKE
from chitu_like.core.errors import ChituError, PeerError
from chitu_like.core.logging import configure_logging
from chitu_like.core.parent import signal_when_parent_dies
from chitu_like.core.phases import Phases, process_age_s
from chitu_like.front_end_process import engine_address
from chitu_like.layout import placement_of
from chitu_like.model_files import ModelFiles, read_model_files
from chitu_like.openmp import wait_without_spinning
from chitu_like.supervisor.link import Link
from chitu_like.supervisor.messages import (
    Begin,
    Ended,
    Found,
    FromRank,
    Head,
    Listening,
    Open,
    ToRank,
    Welcome,
)
from chitu_like.torchrun import MEETING_TIMEOUT_S, TorchrunRank

if TYPE_CHECKING:
    from chitu_like.instance import LoadedEngine

logger = logging.getLogger(__name__)

Heard = TypeVar("Heard", Begin, Open, Welcome)


def main(fd: int) -> int:
    """Run to the end; the exit code."""
    supervisor_pid = os.getppid()
    signal_when_parent_dies(signal.SIGKILL)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # the head drains, and then tells engines to stop
    wait_without_spinning()
    os.set_inheritable(fd, False)
    link: Link[FromRank, ToRank] = Link(socket.socket(fileno=fd), ToRank)
    here = TorchrunRank.from_environ(os.environ)
    configure_logging(rank=here.rank)
    if os.getppid() != supervisor_pid:
        return FAILED  # it died before it was asked to take this process along
    rank = _Rank(link, here)
    try:
        code, reason = rank.run()
    except PeerError as error:
        logger.error("%s", error)
        code, reason = FAILED, str(error)
    except ChituError as error:
        code, reason = USER_MISTAKE, str(error)
    except Exception as error:
        logger.exception("this rank failed")
        code, reason = FAILED, f"{type(error).__name__}; see its log"
    link.send(Ended(here.rank, code, reason))
    return code


class _Rank:
    """What this process is told, and what it becomes.

    Args:
        link: to the supervisor.
        here: this process.
    """

    def __init__(self, link: Link[FromRank, ToRank], here: TorchrunRank) -> None:
        self._link = link
        self._here = here

    def run(self) -> tuple[int, str]:
        """The exit code, and why. Raises: ChituError."""
        begin = self._receive(Begin)
        config = config_from_json(begin.config)
        files = read_model_files(config)
        welcome = self._meet()
        started, secrets = welcome.started, secrets_of(config)
        configure_logging(
            rank=self._here.rank, log_dir=config.log_dir, started=started, secrets=secrets
        )
        from chitu_like.rank import follow

        placement = placement_of(config, files.spec)
        instance = placement.seat(self._here.rank).instance
        if placement.instances[instance].leader == self._here.rank:
            code = self._lead(config, files, instance, welcome)
        else:
            code = follow(config, files.spec, os.environ)
        return code, "told to stop" if code == DONE else "it failed; see its log"

    def _meet(self) -> Welcome:
        """Bring all supervisors together; the head's welcome."""
        from torch.distributed.distributed_c10d import PrefixStore

        from chitu_like.distributed.rendezvous import (
            address_among,
            find_address,
            job_secret,
            open_store,
            publish_address,
        )

        store = PrefixStore("supervisors", open_store(MEETING_TIMEOUT_S))
        secret = job_secret(store, self._here.rank, timeout_s=MEETING_TIMEOUT_S)
        self._host = address_among(store, range(self._here.world_size), MEETING_TIMEOUT_S)
        if self._here.rank == 0:
            self._link.send(Found(self._host, secret))
            publish_address(store, "head", self._receive(Open).address)
        else:
            address = find_address(store, "head", MEETING_TIMEOUT_S)
            self._link.send(Head(address, secret))
        return self._receive(Welcome)

    def _lead(self, config: ServeConfig, files: ModelFiles, instance: int, welcome: Welcome) -> int:
        phases = Phases(process_age_s())
        phases.end("meeting")
        from chitu_like.rank import lead
        from chitu_like.startup_report import print_report

        def tell(loaded: LoadedEngine, address: str) -> None:
            if self._here.rank == 0:
                print_report(Console(), loaded, files.spec)
            self._link.send(Listening(instance, address))

        return lead(
            config,
            files,
            os.environ,
            engine_address=self._engine_address(instance, welcome),
            secret=welcome.secret,
            started=welcome.started,
            phases=phases,
            on_ready=tell,
        )

    def _engine_address(self, instance: int, welcome: Welcome) -> str:
        """A file beside the front end, or any port of the interface that reaches it."""
        if self._here.rank == self._here.local_rank:  # world ranks begin on the head's machine
            return engine_address(welcome.folder, instance)
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"tcp://{host}:*"

    def _receive(self, kind: type[Heard]) -> Heard:
        message = self._link.receive()
        if not isinstance(message, kind):
            raise PeerError(f"the supervisor said {type(message).__name__}, not {kind.__name__}")
        return message


if __name__ == "__main__":
    exit_code = main(int(sys.argv[1]))
    logging.shutdown()
    sys.stdout.flush()
    os._exit(exit_code)  # a thread may wait for a lost rank for ever
