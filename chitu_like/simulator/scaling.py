"""Scaling while serving, on a virtual clock: BlitzScale's decisions with the times that loading takes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from chitu_like.autoscale.controller import Action, Drain, Load, Member, Release, State, decide
from chitu_like.autoscale.monitor import Monitor, Signals
from chitu_like.autoscale.multicast import Fabric, Hop, Source, Spot, plan
from chitu_like.autoscale.policy import ScalingPolicy
from chitu_like.cluster.placement import Role
from chitu_like.core.errors import ConfigError
from chitu_like.disagg.handoff import Phase
from chitu_like.simulator.clock import VirtualClock
from chitu_like.simulator.disagg import Crossing, SplitService, check_failure, count_devices
from chitu_like.simulator.instance import InstanceShape
from chitu_like.simulator.live_step import HelpedStep
from chitu_like.simulator.recorder import FinishedRequest, Recorder
from chitu_like.simulator.results import Results, Slo
from chitu_like.simulator.service import Failure, feed
from chitu_like.simulator.workload import PlannedRequest


@dataclass(frozen=True, kw_only=True)
class Elasticity:
    """What may grow, how fast and when.

    Attributes:
        shape: of every instance.
        spots: where instances may stand.
        fabric: that weights travel over.
        weight_bytes: of one instance.
        policy: how many of each role.
        num_prefill, num_decode: instances at the start, on the first spots.
        tick_s: between two decisions.
        window_s: that the monitor looks back.
        keep_s: how long the weights of an instance that serves nothing are kept.
        is_live: a new prefill instance helps the busiest one while its layers land.
    """

    shape: InstanceShape
    spots: Sequence[Spot]
    fabric: Fabric
    weight_bytes: float
    policy: ScalingPolicy
    num_prefill: int = 1
    num_decode: int = 1
    tick_s: float = 0.5
    window_s: float = 10.0
    keep_s: float = 60.0
    is_live: bool = False

    def __post_init__(self) -> None:
        for name in ("num_prefill", "num_decode", "tick_s", "window_s", "keep_s", "weight_bytes"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}={getattr(self, name)}: give more than 0")
        if len({spot.name for spot in self.spots}) < len(self.spots):
            raise ConfigError("two spots have the same name")
        if self.num_prefill + self.num_decode > len(self.spots):
            raise ConfigError(
                f"{self.num_prefill} prefill and {self.num_decode} decode instances do not fit on "
                f"{len(self.spots)} spots"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Loading:
    """Weights on their way, and the instance that is helped meanwhile."""

    hop: Hop
    helped: str | None


class ScalingLoop:
    """Ticks: observe, decide, act.

    Args:
        clock: of the simulation.
        recorder: told how many instances there are.
        service: whose instances come and go.
        elasticity: within which bounds.
    """

    def __init__(
        self,
        clock: VirtualClock,
        recorder: Recorder,
        service: SplitService,
        elasticity: Elasticity,
    ) -> None:
        """Start the first instances, loaded."""
        self._clock = clock
        self._recorder = recorder
        self._service = service
        self._elasticity = elasticity
        self._monitor = Monitor(elasticity.window_s)
        self._spots = {spot.name: spot for spot in elasticity.spots}
        self._helped: dict[str, list[HelpedStep]] = {}
        self._loading: dict[str, _Loading] = {}
        self._members: dict[str, Member] = {
            name: Member(name=name, state=State.FREE) for name in self._spots
        }
        roles = [Role.PREFILL] * elasticity.num_prefill + [Role.DECODE] * elasticity.num_decode
        for name, role in zip(self._spots, roles, strict=False):
            self._start(name, role)
        self._report()

    def tick(self) -> list[Action]:
        """One decision, and what follows from it. Returns: what was done."""
        elasticity, now_s = self._elasticity, self._clock.now_s
        self._monitor.observe(now_s, self._signals())
        for member in self._in_state(State.DRAINING):
            if self._service.is_idle(member.name):
                self._become(member.name, State.KEPT, member.role)
        actions = decide(
            [
                replace(m, load=self._service.coordinator.load(m.name))
                for m in self._members.values()
            ],
            elasticity.policy,
            self._monitor.newest,
            self._monitor.peak,
            now_s=now_s,
            keep_s=elasticity.keep_s,
        )
        for action in actions:
            self._act(action)
        self._load([action for action in actions if isinstance(action, Load)])
        self._report()
        return actions

    def fail(self, name: str) -> None:
        """A spot is lost for good. Who got weights from it, or through it, begins anew elsewhere."""
        if name not in self._members:
            return
        del self._members[name]
        self._loading.pop(name, None)
        if name in self._service.instances:
            self._service.remove(name)
        cut, again = {name}, list[Load]()
        for target, loading in list(self._loading.items()):  # senders before those they feed
            if loading.hop.source in cut:
                cut.add(target)
                again.append(Load(name=target, role=self._members[target].role))
        for load in again:
            self._stop_loading(load.name)
        self._load(again)
        self._report()

    def _signals(self) -> Signals:
        coordinator = self._service.coordinator
        held = (
            self._service.instances[member.name].instance.blocks
            for member in self._in_state(State.SERVING, State.DRAINING)
            if member.role is Role.DECODE
        )
        return Signals(
            waiting_prefill_tokens=coordinator.num_tokens(Phase.WAITING)
            + coordinator.num_tokens(Phase.PREFILL),
            used_kv_tokens=sum(b.block_size * (b.num_blocks - b.num_free) for b in held),
            migrating_tokens=coordinator.num_tokens(Phase.BRIDGE),
        )

    def _act(self, action: Action) -> None:
        """All but loading, which is planned for all at once."""
        name = action.name
        if isinstance(action, Drain):
            self._service.drain(name)
            self._become(name, State.DRAINING, self._members[name].role)
        elif isinstance(action, Release):
            self._service.remove(name)
            self._become(name, State.FREE, Role.PREFILL)
        elif not isinstance(action, Load):
            self._service.serve_as(name, action.role)
            self._become(name, State.SERVING, action.role)

    def _load(self, loads: Sequence[Load]) -> None:
        sources = [
            Source(spot=self._spots[m.name], is_sending=m.role is Role.PREFILL)
            for m in self._in_state(State.SERVING, State.KEPT)
        ]
        targets = [self._spots[load.name] for load in loads]
        role_of = {load.name: load.role for load in loads}
        hops = plan(self._elasticity.weight_bytes, sources, targets, self._elasticity.fabric)
        for hop in hops:
            role = role_of[hop.target]
            self._become(hop.target, State.LOADING, role)
            helped = self._help(hop) if self._elasticity.is_live and role is Role.PREFILL else None
            loading = _Loading(hop=hop, helped=helped)
            self._loading[hop.target] = loading
            self._clock.after(hop.ready_s, functools.partial(self._loaded, loading, role))

    def _help(self, hop: Hop) -> str | None:
        """Pair a new instance with the busiest that has no help yet. Returns: which."""
        start_s, clock = self._clock.now_s, self._clock
        alone = [
            member.name
            for member in self._in_state(State.SERVING)
            if member.role is Role.PREFILL and not _has_help(self._helped[member.name])
        ]
        busiest = max(alone, key=self._service.coordinator.load, default=None)
        if busiest is not None:
            for stage in self._helped[busiest]:
                stage.share_ready = lambda: hop.share_ready(clock.now_s - start_s)
        return busiest

    def _loaded(self, loading: _Loading, role: Role) -> None:
        name = loading.hop.target
        if self._loading.get(name) is loading:  # else it was cut off meanwhile
            self._stop_loading(name)
            self._start(name, role)
            self._report()

    def _stop_loading(self, name: str) -> None:
        helped = self._loading.pop(name).helped
        for stage in self._helped[helped] if helped is not None else ():
            stage.share_ready = None

    def _start(self, name: str, role: Role) -> None:
        stages = [HelpedStep(stage) for stage in self._elasticity.shape.stages]
        self._helped[name] = stages
        self._service.add(name, replace(self._elasticity.shape, stages=stages), role)
        self._become(name, State.SERVING, role)

    def _become(self, name: str, state: State, role: Role) -> None:
        self._members[name] = Member(name=name, state=state, role=role, since_s=self._clock.now_s)

    def _in_state(self, *states: State) -> list[Member]:
        return [member for member in self._members.values() if member.state in states]

    def _report(self) -> None:
        count_devices(self._service, self._recorder, self._num_loading_devices())
        for role in (Role.PREFILL, Role.DECODE):
            serving = [m for m in self._in_state(State.SERVING) if m.role is role]
            self._recorder.level(f"{role.value}_instances", len(serving))

    def _num_loading_devices(self) -> int:
        return len(self._in_state(State.LOADING)) * self._elasticity.shape.num_devices


def simulate_scaling(
    requests: Iterable[PlannedRequest],
    elasticity: Elasticity,
    crossing: Crossing,
    *,
    slo: Slo | None = None,
    warmup_s: float = 0.0,
    duration_s: float = math.inf,
    failures: Sequence[Failure] = (),
    on_finished: Callable[[FinishedRequest], None] | None = None,
) -> Results:
    """Serve a workload with as many instances as it needs; arguments as in service.simulate.

    Args:
        requests: by rising arrival.
        elasticity: what may grow, how fast and when.
        crossing: between prefill and decode instances.
        slo: what makes a request good.
        warmup_s: before anything counts.
        duration_s: of what counts.
        failures: spots that are lost, by number.
        on_finished: told of every answered request.

    Raises: ConfigError as service.simulate.
    """
    clock = VirtualClock()
    recorder = Recorder(
        clock, slo=slo, warmup_s=warmup_s, duration_s=duration_s, on_finished=on_finished
    )
    service = SplitService(clock, recorder, crossing)
    loop = ScalingLoop(clock, recorder, service, elasticity)
    coming = _Coming(requests)
    names = [spot.name for spot in elasticity.spots]
    for failure in failures:
        check_failure(failure, len(names))
        clock.at(failure.time_s, functools.partial(loop.fail, names[failure.instance]))

    def tick() -> None:
        loop.tick()
        if coming.is_more or service.num_open:
            clock.after(elasticity.tick_s, tick)

    clock.at(0.0, tick)
    feed(clock, coming, service.submit)
    clock.run(warmup_s + duration_s)
    return recorder.results()


class _Coming(Iterator[PlannedRequest]):
    """A workload that knows whether it is through."""

    def __init__(self, requests: Iterable[PlannedRequest]) -> None:
        self._requests = iter(requests)
        self.is_more = True

    def __next__(self) -> PlannedRequest:
        try:
            return next(self._requests)
        except StopIteration:
            self.is_more = False
            raise


def _has_help(stages: Sequence[HelpedStep]) -> bool:
    return any(stage.share_ready is not None for stage in stages)
