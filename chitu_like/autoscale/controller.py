"""From signals to actions: one tick as a pure function of what there is and what is asked of it.

Ways to have one instance more, cheapest first: call back one that drains; flip one whose role has too
many (mutation); revive one that still has its weights; load weights onto a free spot. One fewer: drain,
keep the weights a while, release.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import TypeAlias

from chitu_like.autoscale.monitor import Signals
from chitu_like.autoscale.policy import ScalingPolicy
from chitu_like.cluster.placement import Role


class State(Enum):
    """What a spot is doing."""

    FREE = "free"
    LOADING = "loading"
    SERVING = "serving"
    DRAINING = "draining"
    KEPT = "kept"  # serves nothing, has its weights


@dataclass(frozen=True, kw_only=True)
class Member:
    """A spot as the controller sees it.

    Attributes:
        name: of the spot.
        state: what it does.
        role: PREFILL or DECODE while it loads, serves or drains.
        since_s: when that began.
        load: tokens it has, to choose who goes.
    """

    name: str
    state: State
    role: Role = Role.PREFILL
    since_s: float = 0.0
    load: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Let a spot that has its weights serve in a role: called back, revived or flipped."""

    name: str
    role: Role


@dataclass(frozen=True, kw_only=True)
class Load:
    """Bring weights to a free spot, then let it serve in a role."""

    name: str
    role: Role


@dataclass(frozen=True, kw_only=True)
class Drain:
    """Give a spot nothing new; when it is idle its weights are kept a while."""

    name: str


@dataclass(frozen=True, kw_only=True)
class Release:
    """Forget the weights of a spot: it is free."""

    name: str


Action: TypeAlias = Serve | Load | Drain | Release


def decide(
    members: Sequence[Member],
    policy: ScalingPolicy,
    newest: Signals,
    peak: Signals,
    *,
    now_s: float,
    keep_s: float,
) -> list[Action]:
    """What to do in this tick, at most one thing with each spot.

    Args:
        members: all spots.
        policy: how many of each role.
        newest: the monitor's.
        peak: likewise.
        now_s: seconds of the clock of since_s.
        keep_s: how long weights are kept on a spot that serves nothing.
    """
    tick = _Tick(members)
    wanted = {
        Role.DECODE: policy.num_decode(tick.count(Role.DECODE), newest, peak),
        Role.PREFILL: policy.num_prefill(tick.count(Role.PREFILL), newest, peak),
    }
    tick.flip(wanted)
    for role, number in wanted.items():  # decode first: it cannot wait
        tick.grow(role, number)
    for role, number in wanted.items():
        tick.shrink(role, number)
    tick.release(now_s - keep_s)
    return tick.actions


class _Tick:
    """The members as they will be, and what that takes."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = {member.name: member for member in members}
        self.actions: list[Action] = []

    def count(self, role: Role) -> int:
        """Instances of a role that serve or are about to."""
        return len(self._find(role, State.SERVING)) + len(self._find(role, State.LOADING))

    def flip(self, wanted: dict[Role, int]) -> None:
        """Decodes that are missing come from prefill at once, which is then filled up by loading."""
        missing = wanted[Role.DECODE] - self.count(Role.DECODE)
        missing -= len(self._find(Role.DECODE, State.DRAINING))  # they are called back instead
        for member in self._find(Role.PREFILL, State.SERVING)[: max(0, missing)]:
            if self._may_leave(member):
                self._serve(member, Role.DECODE)

    def grow(self, role: Role, wanted: int) -> None:
        """Up to so many of a role."""
        for state in (State.DRAINING, State.KEPT, State.FREE):
            for member in self._find(role if state is State.DRAINING else None, state):
                if self.count(role) >= wanted:
                    return
                if state is State.FREE:
                    self._become(member, State.LOADING, role)
                    self.actions.append(Load(name=member.name, role=role))
                else:
                    self._serve(member, role)

    def shrink(self, role: Role, wanted: int) -> None:
        """Down to so many of a role, those with the least to do first."""
        for member in self._find(role, State.SERVING):
            if self.count(role) <= wanted or not self._may_leave(member):
                return
            self._become(member, State.DRAINING, role)
            self.actions.append(Drain(name=member.name))

    def release(self, latest_s: float) -> None:
        """Forget weights that were kept since before `latest_s`."""
        for member in self._find(None, State.KEPT):
            if member.since_s <= latest_s:
                self._become(member, State.FREE, member.role)
                self.actions.append(Release(name=member.name))

    def _may_leave(self, member: Member) -> bool:
        """Whether others of its role serve already: one that loads is no help yet."""
        return len(self._find(member.role, State.SERVING)) > 1

    def _serve(self, member: Member, role: Role) -> None:
        self._become(member, State.SERVING, role)
        self.actions.append(Serve(name=member.name, role=role))

    def _become(self, member: Member, state: State, role: Role) -> None:
        self.members[member.name] = replace(member, state=state, role=role)

    def _find(self, role: Role | None, state: State) -> list[Member]:
        """Members in a state and role, least loaded first."""
        found = [m for m in self.members.values() if m.state is state and role in (None, m.role)]
        return sorted(found, key=lambda member: member.load)
