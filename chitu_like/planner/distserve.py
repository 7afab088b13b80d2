"""Parallelism of prefill and decode under an SLO (Zhong et al., DistServe, OSDI 2024).

Prefill is bound by computing and promised a TTFT, decode by memory and promised a TPOT; instances that
do one of them may be cut each in its own way. Both searches of the paper are here. *High affinity*:
keys and values travel fast between any two devices, so each phase takes the cut with the highest
goodput a device (algorithm 1). *Low affinity*: they travel fast within a machine only, so a machine
holds prefill and decode of the same layers, a segment; pairs are searched jointly (algorithm 2).

What is simulated is not known here, so the search can be tested on functions with known answers.
"""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from chitu_like.cluster.placement import Role
from chitu_like.core.errors import CapacityError
from chitu_like.planner.goodput import goodput
from chitu_like.planner.instance_plan import InstanceGroup, InstancePlan, Parallelism


@dataclass(frozen=True, kw_only=True, order=True)
class Candidate:
    """Something that is simulated: one instance of a phase, or a pair.

    Attributes:
        prefill: cut of the prefill instance; None: decode alone is looked at.
        decode: cut of the decode instance; None: prefill alone.
    """

    prefill: Parallelism | None = None
    decode: Parallelism | None = None

    @property
    def num_devices(self) -> int:
        """Of both instances."""
        return sum(cut.num_devices for cut in (self.prefill, self.decode) if cut is not None)

    def __str__(self) -> str:
        parts = (("prefill", self.prefill), ("decode", self.decode))
        return ", ".join(f"{name} {cut}" for name, cut in parts if cut is not None)


class Simulate(Protocol):
    """Seeded simulation of a candidate; it is sent to other processes, so it can be pickled."""

    def fits(self, candidate: Candidate) -> bool:
        """Whether weights and the longest request fit into the devices' memory."""
        ...

    def __call__(self, candidate: Candidate, rate: float) -> float:
        """Share of requests that are good; of pairs the smaller one of TTFT's and TPOT's."""
        ...


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """What may be tried.

    Attributes:
        num_heads: tp divides them.
        num_kv_heads: tp divides them or is a multiple; 0 where nobody said.
        num_layers: pp divides them.
        devices_per_machine: tp stays within a machine; so does a segment of the low affinity search.
        num_devices: of the cluster; an instance is no larger.
        max_tp, max_pp: bounds of the search.
    """

    num_heads: int
    num_layers: int
    devices_per_machine: int
    num_devices: int
    num_kv_heads: int = 0
    max_tp: int = 8
    max_pp: int = 4

    def tps(self) -> list[int]:
        """Tensor parallel degrees."""
        most = min(self.max_tp, self.devices_per_machine, self.num_heads)
        return [tp for tp in range(1, most + 1) if self._divides_heads(tp)]

    def pps(self) -> list[int]:
        """Pipeline parallel degrees."""
        most = min(self.max_pp, self.num_devices, self.num_layers)
        return [pp for pp in range(1, most + 1) if self.num_layers % pp == 0]

    def single(self, role: Role) -> Iterator[Candidate]:
        """Candidates of the high affinity search."""
        for tp in self.tps():
            for pp in self.pps():
                cut = Parallelism(tp=tp, pp=pp)
                if cut.num_devices <= self.num_devices:
                    is_prefill = role is Role.PREFILL
                    yield Candidate(prefill=cut) if is_prefill else Candidate(decode=cut)

    def pairs(self) -> Iterator[Candidate]:
        """Candidates of the low affinity search, each once.

        With pp_cross segments, a machine holds pp_p stages of prefill and pp_d of decode, all of the
        same layers. The cuts of a pair do not say which machines they share, so of several pp_cross
        that lead to the same cuts one is enough.
        """
        found: set[Candidate] = set()
        for cross in self.pps():
            for prefill in self._inside(cross):
                for decode in self._inside(cross):
                    segment = prefill.num_devices + decode.num_devices
                    num_machines = self.num_devices // self.devices_per_machine
                    if cross > num_machines * (self.devices_per_machine // segment):
                        continue
                    found.add(
                        Candidate(
                            prefill=Parallelism(tp=prefill.tp, pp=prefill.pp * cross),
                            decode=Parallelism(tp=decode.tp, pp=decode.pp * cross),
                        )
                    )
        yield from sorted(found, key=_order)

    def _inside(self, cross: int) -> Iterator[Parallelism]:
        """Cuts of a segment, where so many segments make an instance."""
        for tp in self.tps():
            for pp in self.pps():
                if pp * cross in self.pps():
                    yield Parallelism(tp=tp, pp=pp)

    def _divides_heads(self, tp: int) -> bool:
        kv_heads = self.num_kv_heads or self.num_heads
        return self.num_heads % tp == 0 and (kv_heads % tp == 0 or tp % kv_heads == 0)


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How it is searched.

    Attributes:
        target: share of requests that must be good.
        precision: relative width at which bisection ends.
        rate: requests/s to serve; None: the smallest deployment of the best cut.
        processes: simulations at a time; 1: in this process.
    """

    target: float = 0.9
    precision: float = 0.02
    rate: float | None = None
    processes: int = 1


@dataclass(frozen=True, kw_only=True)
class Found:
    """A candidate's goodput, requests/s."""

    candidate: Candidate
    goodput: float

    @property
    def per_device(self) -> float:
        """What the search compares."""
        return self.goodput / self.candidate.num_devices


@dataclass(frozen=True, kw_only=True)
class DistServePlan:
    """What a search found.

    Attributes:
        plan: instances to start.
        tried: every candidate that fits, the best first.
    """

    plan: InstancePlan
    tried: tuple[Found, ...] = field(repr=False)


OnFound: TypeAlias = Callable[[Found], None]
OnStart: TypeAlias = Callable[[int], None]


def search_high_affinity(
    simulate: Simulate,
    space: SearchSpace,
    device: str,
    options: SearchOptions,
    on_found: OnFound = lambda found: None,
    on_start: OnStart = lambda count: None,
) -> DistServePlan:
    """Plan each phase by itself: any two devices exchange keys and values fast.

    Args:
        simulate: of a prefill instance alone, or a decode instance alone.
        space: what may be tried.
        device: for the plan.
        options: how.
        on_found: called for each candidate as it is done.
        on_start: called once with the number of candidates that fit.

    Raises: CapacityError if the model fits nowhere, or no cut keeps the promise at any rate.
    """
    candidates = [*space.single(Role.PREFILL), *space.single(Role.DECODE)]
    tried = search(simulate, candidates, options, on_found, on_start)
    prefill = best(found for found in tried if found.candidate.prefill is not None)
    decode = best(found for found in tried if found.candidate.decode is not None)
    groups = tuple(
        _group(role, cut, found.goodput, options.rate)
        for role, cut, found in (
            (Role.PREFILL, prefill.candidate.prefill, prefill),
            (Role.DECODE, decode.candidate.decode, decode),
        )
    )
    served = min(
        group.count * found.goodput for group, found in zip(groups, (prefill, decode), strict=True)
    )
    plan = InstancePlan(device=device, groups=groups, goodput=served)
    return DistServePlan(plan=_within(plan, space), tried=tried)


def search_low_affinity(
    simulate: Simulate,
    space: SearchSpace,
    device: str,
    options: SearchOptions,
    on_found: OnFound = lambda found: None,
    on_start: OnStart = lambda count: None,
) -> DistServePlan:
    """Plan both phases together: prefill and decode of the same layers share a machine.

    Args:
        simulate: of a prefill and a decode instance together.
        space: what may be tried.
        device: for the plan.
        options: how.
        on_found: called for each candidate as it is done.
        on_start: called once with the number of candidates that fit.

    Raises: CapacityError if the model fits nowhere, or no pair keeps the promises at any rate.
    """
    tried = search(simulate, list(space.pairs()), options, on_found, on_start)
    pair = best(tried)
    groups = (
        _group(Role.PREFILL, pair.candidate.prefill, pair.goodput, options.rate),
        _group(Role.DECODE, pair.candidate.decode, pair.goodput, options.rate),
    )
    plan = InstancePlan(device=device, groups=groups, goodput=pair.goodput * groups[0].count)
    return DistServePlan(plan=_within(plan, space), tried=tried)


def search(
    simulate: Simulate,
    candidates: Sequence[Candidate],
    options: SearchOptions,
    on_found: OnFound = lambda found: None,
    on_start: OnStart = lambda count: None,
) -> tuple[Found, ...]:
    """Find the goodput of each candidate that fits, the best first.

    The result does not depend on how many processes searched: each candidate's search is seeded and
    knows nothing of the others.

    Raises: CapacityError if none fits.
    """
    fitting = [candidate for candidate in candidates if simulate.fits(candidate)]
    if not fitting:
        raise CapacityError(
            f"the model fits no instance of the {len(candidates)} tried: raise plan.max_tp or "
            "plan.max_pp, or take devices with more memory"
        )
    work = [_Work(simulate=simulate, candidate=candidate, options=options) for candidate in fitting]
    on_start(len(work))
    tried = []
    for found in _run(work, min(options.processes, len(work))):
        on_found(found)
        tried.append(found)
    return tuple(sorted(tried, key=_rank))


def best(tried: Iterable[Found]) -> Found:
    """The highest goodput a device; of equal ones the fewest devices.

    Raises: CapacityError where nothing has any.
    """
    found = min(tried, key=_rank, default=None)
    if found is None or found.goodput == 0.0:
        raise CapacityError(
            "no parallelism keeps the SLO at any rate: raise slo.ttft_s or slo.tpot_s, or plan.max_tp"
        )
    return found


@dataclass(frozen=True, kw_only=True)
class _Work:
    simulate: Simulate
    candidate: Candidate
    options: SearchOptions

    def run(self) -> Found:
        found = goodput(
            lambda rate: self.simulate(self.candidate, rate),
            target=self.options.target,
            precision=self.options.precision,
        )
        return Found(candidate=self.candidate, goodput=found)


def _run(work: Sequence[_Work], processes: int) -> Iterator[Found]:
    if processes == 1:
        yield from map(_Work.run, work)
        return
    # Not multiprocessing.Pool, which starts a dead worker anew for ever.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        futures = [pool.submit(one.run) for one in work]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _rank(found: Found) -> tuple[float, int, tuple[int, ...]]:
    return -found.per_device, found.candidate.num_devices, _order(found.candidate)


def _order(candidate: Candidate) -> tuple[int, ...]:
    cuts = (candidate.prefill, candidate.decode)
    return tuple(n for cut in cuts for n in ((0, 0) if cut is None else (cut.tp, cut.pp)))


def _group(
    role: Role, cut: Parallelism | None, goodput: float, rate: float | None
) -> InstanceGroup:
    assert cut is not None, f"a candidate of {role} says how it is cut"
    count = 1 if rate is None else math.ceil(rate / goodput)
    return InstanceGroup(role=role, parallelism=cut, count=count)


def _within(plan: InstancePlan, space: SearchSpace) -> InstancePlan:
    """Raises: CapacityError for a plan that takes more devices than there are."""
    if plan.num_devices > space.num_devices:
        groups = ", ".join(f"{g.count} x {g.role.value} {g.parallelism}" for g in plan.groups)
        raise CapacityError(
            f"{groups} take {plan.num_devices} devices and the cluster has {space.num_devices}: "
            "lower plan.rate, or add devices"
        )
    return plan
