"""Prefill and decode apart, on a virtual clock: the coordinator and receivers that will serve."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from chitu_like.cluster.placement import Role
from chitu_like.cluster.topology import Link
from chitu_like.core.errors import ConfigError
from chitu_like.core.output import FinishReason, RequestDelta
from chitu_like.disagg.coordinator import Coordinator
from chitu_like.disagg.handoff import Leases
from chitu_like.simulator.clock import VirtualClock
from chitu_like.simulator.instance import InstanceShape, message_of
from chitu_like.simulator.kv_network import KvNetwork
from chitu_like.simulator.recorder import FinishedRequest, Recorder
from chitu_like.simulator.results import Results, Slo
from chitu_like.simulator.service import Failure, feed
from chitu_like.simulator.split_instance import SplitInstance
from chitu_like.simulator.workload import PlannedRequest

EXPIRE_S = 1.0
"""How often leases are looked at while requests are open."""


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """How requests get from prefill to decode instances.

    Attributes:
        link: between any two instances, all their network cards together; its ends are not looked at.
        kv_bytes_per_token: keys and values of a token in ALL layers.
        leases: how long a request may be on its way.
        max_landed_share: of a decode instance's blocks that may wait there for a slot.
    """

    link: Link
    kv_bytes_per_token: float
    leases: Leases = field(default_factory=Leases)
    max_landed_share: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.kv_bytes_per_token < math.inf:
            raise ConfigError(f"kv_bytes_per_token={self.kv_bytes_per_token}: give 0 or more")


@dataclass(slots=True)
class _OpenRequest:
    """What is known of a request until its last token."""

    request: PlannedRequest
    arrival_s: float
    first_token_s: float = math.nan
    num_cached_tokens: int = 0


class SplitService:
    """Instances of both roles behind the coordinator. They may come, go and change their roles.

    Args:
        clock: of the simulation.
        recorder: told of everything.
        crossing: between the instances.

    Attributes:
        instances: those that are up, by name.
        coordinator: the real one.
    """

    def __init__(self, clock: VirtualClock, recorder: Recorder, crossing: Crossing) -> None:
        """Start without instances."""
        self.instances: dict[str, SplitInstance] = {}
        self.coordinator = Coordinator(clock, crossing.leases, self._fail_request)
        self._clock = clock
        self._recorder = recorder
        self._crossing = crossing
        self._network = KvNetwork(clock, crossing.link, recorder)
        self._open: dict[str, _OpenRequest] = {}
        self._is_armed = False

    # Instances

    def add(self, name: str, shape: InstanceShape, role: Role) -> None:
        """An instance serves from now on.

        Raises: ConfigError where its blocks are not as large as those of the others.
        """
        for other in self.instances.values():
            if other.instance.shape.block_size != shape.block_size:
                raise ConfigError(
                    f"{name}: blocks of {shape.block_size} tokens, {other.name} has "
                    f"{other.instance.shape.block_size}: blocks are copied, so they are alike"
                )
        self.instances[name] = SplitInstance(
            name,
            shape,
            self._clock,
            self.coordinator,
            self._network,
            self._crossing.kv_bytes_per_token * shape.block_size,
            self._hear,
            self._recorder,
            self._crossing.max_landed_share,
        )
        self.serve_as(name, role)

    def serve_as(self, name: str, role: Role) -> None:
        """Let an instance take new requests in one role, and finish what it has of the other."""
        self.coordinator.drain(name)
        if role is Role.PREFILL:
            self.coordinator.add_prefill(name, self.instances[name])
        else:
            self.coordinator.add_decode(name, self.instances[name])

    def drain(self, name: str) -> None:
        """Give an instance nothing new."""
        self.coordinator.drain(name)

    def is_idle(self, name: str) -> bool:
        """Whether an instance holds nothing any more, so that it may go."""
        return self.coordinator.is_idle(name) and self.instances[name].is_empty

    def remove(self, name: str) -> None:
        """An instance is gone: drained and idle, or lost with all it holds."""
        self.instances.pop(name).fail()
        self.coordinator.lose(name)

    # Requests

    @property
    def num_open(self) -> int:
        """Requests that came and have not ended."""
        return len(self._open)

    def submit(self, request: PlannedRequest) -> None:
        """A request comes now."""
        self._recorder.count("arrived")
        message = message_of(request, str(request.index))
        self._open[message.request_id] = _OpenRequest(request, self._clock.now_s)
        self.coordinator.add(message)
        self._arm()

    def _arm(self) -> None:
        """Look at leases now and then while there is any."""
        if not self._is_armed and self._open:
            self._is_armed = True
            self._clock.after(EXPIRE_S, self._expire)

    def _expire(self) -> None:
        self._is_armed = False
        self.coordinator.expire()
        self._arm()

    def _fail_request(self, request_id: str, reason: str) -> None:
        del self._open[request_id]
        self._recorder.count("failed")

    def _hear(self, name: str, deltas: list[RequestDelta]) -> None:
        """The news of a step."""
        num_tokens = 0
        for delta in deltas:
            if not self.coordinator.speaks_for(name, delta.request_id):
                continue
            num_tokens += len(delta.token_ids)
            found = self._open[delta.request_id]
            if delta.token_ids and math.isnan(found.first_token_s):
                found.first_token_s = self._clock.now_s
                found.num_cached_tokens = delta.num_cached_tokens
                self._recorder.count("prompt_tokens", found.request.input_len)
            if delta.finish_reason is not None:
                self.coordinator.finished(name, delta.request_id)
                self._end(name, self._open.pop(delta.request_id), delta)
        if num_tokens:
            self._recorder.count("output_tokens", num_tokens)

    def _end(self, name: str, found: _OpenRequest, delta: RequestDelta) -> None:
        if delta.finish_reason is FinishReason.ERROR:
            self._recorder.count("refused")
            return
        request = found.request
        self._recorder.finished(
            FinishedRequest(
                index=request.index,
                arrival_s=found.arrival_s,
                first_token_s=found.first_token_s,
                finished_s=self._clock.now_s,
                input_len=request.input_len,
                output_len=request.output_len,
                num_cached_tokens=found.num_cached_tokens,
                place=name,
            )
        )


def simulate_split(
    requests: Iterable[PlannedRequest],
    prefills: Sequence[InstanceShape],
    decodes: Sequence[InstanceShape],
    crossing: Crossing,
    *,
    slo: Slo | None = None,
    warmup_s: float = 0.0,
    duration_s: float = math.inf,
    failures: Sequence[Failure] = (),
    on_finished: Callable[[FinishedRequest], None] | None = None,
) -> Results:
    """Serve a workload with prefill and decode apart; arguments as in service.simulate.

    Args:
        requests: by rising arrival.
        prefills: of the prefill instances, "prefill0" and so on.
        decodes: of the decode instances, "decode0" and so on.
        crossing: between them.
        slo: what makes a request good.
        warmup_s: before anything counts.
        duration_s: of what counts.
        failures: instances that are lost, counted through prefills, then decodes.
        on_finished: told of every answered request.

    Raises: ConfigError for a missing role, or as service.simulate.
    """
    if not prefills or not decodes:
        raise ConfigError("a split service needs one prefill and one decode instance at least")
    clock = VirtualClock()
    recorder = Recorder(
        clock, slo=slo, warmup_s=warmup_s, duration_s=duration_s, on_finished=on_finished
    )
    service = SplitService(clock, recorder, crossing)
    names: list[str] = []
    for role, shapes in ((Role.PREFILL, prefills), (Role.DECODE, decodes)):
        for number, shape in enumerate(shapes):
            names.append(f"{role.value}{number}")
            service.add(names[-1], shape, role)
    count_devices(service, recorder)
    for failure in failures:
        check_failure(failure, len(names))
        lost = functools.partial(_lose, service, recorder, names[failure.instance])
        clock.at(failure.time_s, lost)
    feed(clock, requests, service.submit)
    clock.run(warmup_s + duration_s)
    return recorder.results()


def check_failure(failure: Failure, num_instances: int) -> None:
    """Raise ConfigError for one of an instance that is not there."""
    if not 0 <= failure.instance < num_instances or failure.time_s < 0:
        raise ConfigError(
            f"failure of instance {failure.instance} at {failure.time_s} s: there are instances "
            f"0 to {num_instances - 1}, and time begins at 0"
        )


def count_devices(service: SplitService, recorder: Recorder, num_others: int = 0) -> None:
    """Tell what is paid for: the devices of all instances, and `num_others` that serve nothing yet."""
    shapes = [split.instance.shape for split in service.instances.values()]
    recorder.level("devices", num_others + sum(shape.num_devices for shape in shapes))


def _lose(service: SplitService, recorder: Recorder, name: str) -> None:
    if name in service.instances:
        service.remove(name)
        count_devices(service, recorder)
