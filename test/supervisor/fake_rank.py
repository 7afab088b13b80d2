"""A rank without a model: it meets the others through files, listens, and ends as it is told.

`python fake_rank.py FOLDER FD`. FOLDER/<rank> holds what it shall do: nothing yet, a number to end
with, or `listen` first. FOLDER/stop ends those that listen with 0, as Shutdown does.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path

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

RANKS_PER_INSTANCE = 2


def wait_for(path: Path) -> str:
    while not path.exists() or not (text := path.read_text()):
        time.sleep(0.01)
    return text


def meet(link: Link[FromRank, ToRank], folder: Path, rank: int) -> None:
    if rank == 0:
        link.send(Found("127.0.0.1", "word"))
        opened = link.receive()
        assert isinstance(opened, Open)
        (folder / "head.new").write_text(opened.address)
        (folder / "head.new").rename(folder / "head")
    else:
        link.send(Head(wait_for(folder / "head"), "word"))
    assert link.receive() == Welcome("now", "engine-secret", "/run/x")


def main() -> int:
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    signal.signal(signal.SIGUSR1, lambda *_: (folder / f"dumped-{rank}").touch())
    link: Link[FromRank, ToRank] = Link(socket.socket(fileno=int(sys.argv[2])), ToRank)
    assert isinstance(link.receive(), Begin)
    (folder / f"pid-{rank}").write_text(str(os.getpid()))
    meet(link, folder, rank)
    order = wait_for(folder / str(rank))
    if order == "listen":
        instance, place = divmod(rank, RANKS_PER_INSTANCE)
        if place == 0:
            link.send(Listening(instance, f"ipc:///engine-{instance}"))
        order = "0" if wait_for(folder / "stop") else ""
    link.send(Ended(rank, int(order), f"rank {rank} was told to"))
    return int(order)


if __name__ == "__main__":
    sys.exit(main())
