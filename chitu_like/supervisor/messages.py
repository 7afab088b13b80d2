"""What supervisors, their ranks and the head say to each other.

The head is world rank 0's supervisor: it has the front end and says when the job is over. A supervisor
and its rank share a socket pair with one JSON line a message. Only a rank imports torch, so it is the
rank that reads torchrun's store, where it finds the head for its supervisor. Supervisors then talk
to the head over a channel of msgpack, see distributed/channel.py.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec


class Begin(msgspec.Struct, frozen=True, tag="begin"):
    """Supervisor to its rank: what to be. The rest stands in torchrun's variables.

    Attributes:
        config: as `config/tree.py` writes it.
    """

    config: str


class Found(msgspec.Struct, frozen=True, tag="found"):
    """World rank 0 to the head: where to listen for the others.

    Attributes:
        host: address of the one interface that reaches all ranks.
        secret: of the job.
    """

    host: str
    secret: str


class Open(msgspec.Struct, frozen=True, tag="open"):
    """The head to world rank 0, which puts it into the store.

    Attributes:
        address: where the head listens.
    """

    address: str


class Head(msgspec.Struct, frozen=True, tag="head"):
    """Any other rank to its supervisor: where the head listens.

    Attributes:
        address, secret: of the head's channel.
    """

    address: str
    secret: str


class Welcome(msgspec.Struct, frozen=True, tag="welcome"):
    """The head to all ranks, through their supervisors, once all are there.

    Attributes:
        started: name of the run's log folder.
        secret: what the front end will say to engines.
        folder: for the sockets of engines on the head's machine.
    """

    started: str
    secret: str
    folder: str


class Listening(msgspec.Struct, frozen=True, tag="listening"):
    """An instance's leader to the head: its engine takes requests.

    Attributes:
        instance: its number.
        address: for the front end.
    """

    instance: int
    address: str


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """A rank has ended. It says so itself where it can, else its supervisor does.

    Attributes:
        rank: of the world.
        code: 0 told to stop, 1 something broke, 2 the user's mistake.
        reason: one sentence.
    """

    rank: int
    code: int
    reason: str


class EndRanks(msgspec.Struct, frozen=True, tag="end"):
    """The head to all supervisors: these ranks belong to a lost instance and must end.

    Attributes:
        ranks: of the world.
    """

    ranks: list[int]


class Over(msgspec.Struct, frozen=True, tag="over"):
    """The head to all supervisors: the job is over.

    Attributes:
        code: to end with; 0 for a supervisor whose rank was lost is 1.
    """

    code: int


ToRank: TypeAlias = Begin | Open | Welcome
FromRank: TypeAlias = Found | Head | Listening | Ended
ToSupervisor: TypeAlias = Welcome | EndRanks | Over
FromSupervisor: TypeAlias = Listening | Ended
