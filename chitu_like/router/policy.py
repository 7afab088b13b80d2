"""Which instance gets a request: each policy is one small class, named by `router.policy`.

A policy sees numbers and token ids alone: no clock, no socket, no event loop. So the code that
routes a service routes a simulation too. A new policy is one decorated class here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Protocol

from chitu_like.core.errors import ConfigError
from chitu_like.engine.messages import AddRequest
from chitu_like.router.prefix_memory import PrefixMemory

MAX_EXTRA_SHARE = 0.25
"""How much more of its room an instance may have in use than the least loaded one and still be
given a request for its prefix. Decoding is bound by memory, so a batch that is larger by a quarter
costs its requests little, while a prefix not computed again is time won. A guess, not measured."""


@dataclass(frozen=True, kw_only=True)
class InstanceLoad:
    """What is known of an instance when a request comes.

    Attributes:
        instance: its number, the same for as long as it lives.
        num_open: requests it was given and has not finished.
        num_waiting_tokens: prompt tokens of those that have not answered with anything yet.
        max_reqs: requests it can run at once.
    """

    instance: int
    num_open: int
    num_waiting_tokens: int
    max_reqs: int

    @property
    def share(self) -> float:
        """Open requests for each that it can run; above 1 some wait."""
        return self.num_open / self.max_reqs


class Policy(Protocol):
    """Chooses among instances; may remember what it chose."""

    def choose(self, loads: Sequence[InstanceLoad], request: AddRequest) -> int:
        """Index into `loads` of the instance that gets `request`.

        Args:
            loads: of the instances that have room for it, by rising number; at least one. Others
                are full, or have failed.
            request: not modified.
        """
        ...


MakePolicy = Callable[[int], Policy]
POLICIES: dict[str, MakePolicy] = {}
DEFAULT_POLICY = "least_loaded"


def policy(name: str) -> Callable[[MakePolicy], MakePolicy]:
    """File the decorated class, which is made with a seed, under `name`."""

    def add(make: MakePolicy) -> MakePolicy:
        POLICIES[name] = make
        return make

    return add


def make_policy(name: str, seed: int = 0) -> Policy:
    """The policy called `name`.

    Args:
        name: as users write it.
        seed: of what it draws by lot.

    Raises:
        ConfigError: there is none.
    """
    if name not in POLICIES:
        near = get_close_matches(name, POLICIES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(POLICIES)}"
        raise ConfigError(f"router.policy={name}: no such policy; {hint}")
    return POLICIES[name](seed)


@policy("least_loaded")
class LeastLoaded:
    """The smallest share of running room in use, then the least prefill still to do.

    Room first: an instance that is full makes a request wait however little prefill it has.
    """

    def __init__(self, seed: int = 0) -> None:
        """Nothing is drawn."""

    def choose(self, loads: Sequence[InstanceLoad], request: AddRequest) -> int:
        """See Policy."""
        return least_loaded(loads)


@policy("round_robin")
class RoundRobin:
    """Each in its turn: even without knowing any load, where requests are alike."""

    def __init__(self, seed: int = 0) -> None:
        """Begin with the first."""
        self._last = -1

    def choose(self, loads: Sequence[InstanceLoad], request: AddRequest) -> int:
        """See Policy."""
        later = (index for index, load in enumerate(loads) if load.instance > self._last)
        chosen = next(later, 0)
        self._last = loads[chosen].instance
        return chosen


@policy("power_of_two")
class PowerOfTwo:
    """The less loaded of two drawn by lot (Mitzenmacher 2001, IEEE TPDS 12(10)).

    Its worst queue is exponentially shorter than with one draw, and front ends that know of each
    other's requests only late do not all run to the same instance.
    """

    def __init__(self, seed: int = 0) -> None:
        """Draw from `seed` on."""
        self._chance = random.Random(seed)

    def choose(self, loads: Sequence[InstanceLoad], request: AddRequest) -> int:
        """See Policy."""
        drawn = self._chance.sample(range(len(loads)), min(2, len(loads)))
        return drawn[least_loaded([loads[index] for index in drawn])]


@policy("prefix_aware")
class PrefixAware:
    """Where its longest prefix was sent last, for what that instance need not compute again.

    An instance that is loaded much more than the least loaded one loses the request to that one,
    and with it the prefix: so a prefix that everybody asks for spreads over the instances.
    """

    def __init__(self, seed: int = 0) -> None:
        """Nothing is known yet, and nothing is drawn."""
        self.memory = PrefixMemory()

    def choose(self, loads: Sequence[InstanceLoad], request: AddRequest) -> int:
        """See Policy."""
        names = self.memory.names(request.prompt_token_ids)
        known = self.memory.find(names)
        chosen = least_loaded(loads)
        for index, load in enumerate(loads):
            if load.instance == known and not _is_overloaded(load, loads[chosen]):
                chosen = index
                break
        self.memory.remember(names, loads[chosen].instance)
        return chosen


def least_loaded(loads: Sequence[InstanceLoad]) -> int:
    """Index of the smallest load; see LeastLoaded."""
    return min(range(len(loads)), key=lambda i: (loads[i].share, loads[i].num_waiting_tokens))


def _is_overloaded(load: InstanceLoad, least: InstanceLoad) -> bool:
    """Whether a prefix is not worth it: far more in use, or a wait where there need be none."""
    return load.share - least.share > MAX_EXTRA_SHARE or load.share >= 1 > least.share
