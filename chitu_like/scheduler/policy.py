"""Who goes first: each policy is a sort key over requests, and `scheduler.type` lists keys in order.

The smaller key goes first; ties fall to the next key of the list, at last to arrival. A new policy is
one decorated function here. Whatever the keys say, a request that got nothing for `starvation_s`
seconds goes before all others for the rest of its life, so nobody starves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from chitu_like.core.errors import ConfigError
from chitu_like.core.request import Request
from chitu_like.scheduler.mlfq import Quanta


class Situation(msgspec.Struct, frozen=True, kw_only=True):
    """What a key may look at beside the request.

    Attributes:
        now_s: the scheduler's clock.
        count_cached: prompt tokens of a waiting request that the prefix cache holds.
        prefill_lead: prefill tokens minus decode tokens served lately (older ones fade).
        quanta: of the mlfq policy.
    """

    now_s: float
    count_cached: Callable[[Request], int]
    prefill_lead: float
    quanta: Quanta


@dataclass(frozen=True, kw_only=True)
class SortKey:
    """One policy.

    Attributes:
        name: as users write it.
        key: smaller goes first.
        is_static: a waiting request's key never changes, so the queue is sorted once.
        is_preemptive: a waiting request with a smaller key takes a running one's place.
        is_settled: a request's key does not change while it decodes, so running requests are sorted
            only when one joins or comes through its prompt.
    """

    name: str
    key: Callable[[Request, Situation], float]
    is_static: bool
    is_preemptive: bool
    is_settled: bool


SORT_KEYS: dict[str, SortKey] = {}
ALIASES = {"fifo": "fcfs"}


def sort_key(
    *, is_static: bool, is_preemptive: bool = False, is_settled: bool = False
) -> Callable[[Callable[[Request, Situation], float]], Callable[[Request, Situation], float]]:
    """File the decorated function under its own name."""

    def add(
        key: Callable[[Request, Situation], float],
    ) -> Callable[[Request, Situation], float]:
        name = key.__name__
        SORT_KEYS[name] = SortKey(
            name=name,
            key=key,
            is_static=is_static,
            is_preemptive=is_preemptive,
            is_settled=is_settled,
        )
        return key

    return add


@sort_key(is_static=True, is_settled=True)
def fcfs(request: Request, situation: Situation) -> float:
    """First come, first served: nobody waits for a later arrival."""
    return request.arrival_s


@sort_key(is_static=True, is_settled=True)
def prefill_first(request: Request, situation: Situation) -> float:
    """Prompts before decodes: a new request joins early, so decode batches stay large (Orca)."""
    return 1.0 if request.slot is not None and request.is_decoding else 0.0


@sort_key(is_static=True, is_preemptive=True, is_settled=True)
def request_preset(request: Request, situation: Situation) -> float:
    """The order users asked for: lower `priority` first."""
    return float(request.params.priority)


@sort_key(is_static=True, is_preemptive=True, is_settled=True)
def deadline(request: Request, situation: Situation) -> float:
    """Earliest deadline first: meets every deadline whenever some order does."""
    return request.deadline_s


@sort_key(is_static=True)
def stride(request: Request, situation: Situation) -> float:
    """Service in proportion to 2**-priority (stride scheduling, Waldspurger and Weihl 1995)."""
    return stride_pass(request)


@sort_key(is_static=False, is_settled=True)
def prefix_align(request: Request, situation: Situation) -> float:
    """Longest cached prefix first: requests of one prefix follow each other while it is cached."""
    return -float(situation.count_cached(request)) if request.slot is None else -math.inf


@sort_key(is_static=False)
def balance(request: Request, situation: Situation) -> float:
    """The phase, prefill or decode, that lately got fewer tokens goes first."""
    is_behind = request.is_decoding == (situation.prefill_lead > 0)
    return 0.0 if is_behind else 1.0


@sort_key(is_static=True, is_preemptive=True)
def mlfq(request: Request, situation: Situation) -> float:
    """Multi-level feedback queue: short jobs finish before long ones without knowing lengths.

    A request starts in the queue that its prompt fills (skip-join) and sinks as it is served.
    """
    return float(situation.quanta.queue(request))


def stride_pass(request: Request) -> float:
    """Virtual time of a request: where it started and what it was served, weighted."""
    return request.start_pass + request.num_served_tokens * 2.0**request.params.priority


class Ordering:
    """The keys of a `scheduler.type` string, applied together.

    Args:
        scheduler_type: names separated by commas, most significant first.

    Raises:
        ConfigError: an unknown or repeated name.
    """

    def __init__(self, scheduler_type: str) -> None:
        """Look up every name."""
        names = [part.strip() for part in scheduler_type.split(",")]
        names = [ALIASES.get(name, name) for name in names]
        for name in names:
            if name not in SORT_KEYS or names.count(name) > 1:
                fault = "stands twice" if name in SORT_KEYS else "is no sort key"
                raise ConfigError(
                    f"scheduler.type={scheduler_type}: {name!r} {fault}; "
                    f"use a comma list of {', '.join(SORT_KEYS)}"
                )
        keys = [SORT_KEYS[name] for name in names]
        self._first, *self._others = (key.key for key in keys)
        self.is_static = all(key.is_static for key in keys)
        self.is_settled = all(key.is_settled for key in keys)
        self.is_preemptive = keys[0].is_preemptive
        self.can_starve = not {"fcfs", "prefill_first"} >= set(names)  # those keep arrival order

    def rank(self, request: Request, situation: Situation) -> tuple[float, ...]:
        """Sort rank of a request; the smallest goes first."""
        if request.is_promoted:
            return (0.0, request.arrival_s)
        first = self._first(request, situation)
        if not self._others:  # nearly always, for every running request in every step
            return (1.0, first, request.arrival_s)
        others = [key(request, situation) for key in self._others]
        return (1.0, first, *others, request.arrival_s)

    def outranks(self, request: Request, other: Request, situation: Situation) -> bool:
        """Whether `request` may take the running `other`'s place: its first key is smaller."""
        if not self.is_preemptive:
            return False
        return self.rank(request, situation)[:2] < self.rank(other, situation)[:2]
