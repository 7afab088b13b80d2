"""A worker as a process of its own: answers every Ask until told to stop; run by test_channel.py."""

from __future__ import annotations

import os
import sys
import time
from typing import TypeAlias

import msgspec

from chitu_like.core.errors import PeerError
from chitu_like.distributed.channel import WorkerChannel


class Ask(msgspec.Struct, frozen=True, tag="ask"):
    number: int
    filling: bytes = b""


class Compute(msgspec.Struct, frozen=True, tag="compute"):
    """Be deaf for so long, as in a collective that waits for its peers."""

    seconds: float


class End(msgspec.Struct, frozen=True, tag="end"):
    pass


class Answer(msgspec.Struct, frozen=True, tag="answer"):
    rank: int
    number: int
    num_bytes: int = 0


Order: TypeAlias = Ask | Compute | End

EXIT_IN_RECEIVE = 11
EXIT_WHILE_COMPUTING = 12


def main(address: str, secret: str, rank: int, silence_s: float) -> None:
    channel: WorkerChannel[Order, Answer] = WorkerChannel.connect(
        address,
        secret,
        rank=rank,
        to_worker=Order,
        silence_s=silence_s,
        timeout_s=60.0,
        on_lost=lambda reason: (print("lost:", reason, flush=True), os._exit(EXIT_WHILE_COMPUTING)),
    )
    try:
        while not isinstance(order := channel.receive(), End):
            if isinstance(order, Compute):
                channel.send(Answer(rank, -1))
                time.sleep(order.seconds)
            else:
                channel.send(Answer(rank, order.number, len(order.filling)))
    except PeerError as error:
        print(error, flush=True)
        sys.exit(EXIT_IN_RECEIVE)
    channel.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
