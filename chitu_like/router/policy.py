"""The order in which instances are asked: each policy is a small function over their loads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, kw_only=True)
class InstanceLoad:
    """What the router knows of an instance when it chooses.

    Attributes:
        num_open: requests it was given and has not finished.
        num_waiting_tokens: prompt tokens of those that have not answered with anything yet.
        max_reqs: requests it can run at once.
    """

    num_open: int
    num_waiting_tokens: int
    max_reqs: int


Policy: TypeAlias = Callable[[Sequence[InstanceLoad]], int]
"""Index of the instance to send the next request to; there is at least one load."""


def least_loaded(loads: Sequence[InstanceLoad]) -> int:
    """Choose the smallest share of running room in use, then the least prefill still to do.

    Room first: an instance that is full makes a request wait however little prefill it has.
    """
    return min(
        range(len(loads)),
        key=lambda i: (
            loads[i].num_open / loads[i].max_reqs,
            loads[i].num_waiting_tokens,
        ),
    )
