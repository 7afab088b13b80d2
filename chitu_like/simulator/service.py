"""A service on a virtual clock: instances behind the router's policies and admission.

What the router does with a call it does here: refuse or admit within bounds, choose an instance by
policy, keep books on what each was given. A lost instance takes its requests with it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from chitu_like.core.errors import ConfigError, RequestError
from chitu_like.core.output import FinishReason, RequestDelta
from chitu_like.router.admission import QueueBounds, Refused, choose_instances
from chitu_like.router.instance import Books
from chitu_like.router.policy import DEFAULT_POLICY, make_policy
from chitu_like.simulator.clock import VirtualClock
from chitu_like.simulator.instance import InstanceShape, SimulatedInstance, message_of
from chitu_like.simulator.recorder import FinishedRequest, Recorder
from chitu_like.simulator.results import Results, Slo
from chitu_like.simulator.workload import PlannedRequest

NO_BOUNDS = QueueBounds(requests=1 << 62, tokens=1 << 62)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An instance that is lost for good.

    Attributes:
        time_s: when.
        instance: its number.
    """

    time_s: float
    instance: int


@dataclass(slots=True)
class _OpenRequest:
    """What is known of a request until its last token."""

    request: PlannedRequest
    arrival_s: float
    first_token_s: float = math.nan
    num_tokens: int = 0  # of its answer, so far


class SimulatedService:
    """Instances behind the router.

    Args:
        shapes: of the instances, one each.
        clock: of the simulation.
        recorder: told of everything.
        policy: router.policy.
        bounds: how much may wait on an instance before requests are refused.
        seed: of what the policy draws.

    Attributes:
        instances: by number, lost ones too.
    """

    def __init__(
        self,
        shapes: Sequence[InstanceShape],
        clock: VirtualClock,
        recorder: Recorder,
        *,
        policy: str = DEFAULT_POLICY,
        bounds: QueueBounds = NO_BOUNDS,
        seed: int = 0,
    ) -> None:
        """Start idle."""
        if not shapes:
            raise ConfigError("a service needs one instance at least")
        self._clock = clock
        self._recorder = recorder
        self._policy = make_policy(policy, seed)
        self._bounds = bounds
        self._open: list[dict[str, _OpenRequest]] = [{} for _ in shapes]
        self._books = [Books(number) for number in range(len(shapes))]
        for books, shape in zip(self._books, shapes, strict=True):
            books.info = shape.info
        self.instances = [
            SimulatedInstance(
                f"instance{number}",
                shape,
                clock,
                functools.partial(self._hear, number),
                recorder=recorder,
            )
            for number, shape in enumerate(shapes)
        ]
        self._count_devices()

    @property
    def num_open(self) -> int:
        """Requests that were admitted and have not ended."""
        return sum(map(len, self._open))

    def submit(self, request: PlannedRequest) -> None:
        """A request comes now: it is refused, or given to an instance."""
        self._recorder.count("arrived")
        message = message_of(request, str(request.index))
        up = [books for books in self._books if self.instances[books.number].is_up]
        try:
            [index] = choose_instances(
                [books.load() for books in up],
                [message],
                policy=self._policy,
                bounds=self._bounds,
            )
        except (Refused, RequestError):
            self._recorder.count("refused")
            return
        books = up[index]
        books.opened(message)
        self._open[books.number][message.request_id] = _OpenRequest(request, self._clock.now_s)
        self.instances[books.number].add(message)

    def fail(self, number: int) -> None:
        """Lose an instance: its requests end with an error, the others serve on."""
        if not self.instances[number].is_up:
            return
        self.instances[number].fail()
        self._recorder.count("failed", len(self._open[number]))
        self._open[number].clear()
        self._count_devices()

    def _hear(self, number: int, deltas: list[RequestDelta]) -> None:
        """The news of a step. A delta for every token comes through here: nothing is done twice."""
        books, open_requests, now_s = self._books[number], self._open[number], self._clock.now_s
        num_tokens = 0
        for delta in deltas:
            found, num_new = open_requests[delta.request_id], len(delta.token_ids)
            if num_new and not found.num_tokens:
                books.answered(delta.request_id)
                found.first_token_s = now_s
                self._recorder.count("prompt_tokens", found.request.input_len)
            found.num_tokens += num_new
            num_tokens += num_new
            if delta.finish_reason is not None:
                books.closed(delta.request_id)
                self._end(number, open_requests.pop(delta.request_id), delta)
        if num_tokens:
            self._recorder.count("output_tokens", num_tokens)

    def _end(self, number: int, found: _OpenRequest, delta: RequestDelta) -> None:
        if delta.finish_reason is FinishReason.ERROR:
            self._recorder.count("refused")
            return
        self._recorder.finished(
            FinishedRequest(
                index=found.request.index,
                arrival_s=found.arrival_s,
                first_token_s=found.first_token_s,
                finished_s=self._clock.now_s,
                input_len=found.request.input_len,
                output_len=found.num_tokens,
                num_cached_tokens=delta.num_cached_tokens,
                place=self.instances[number].name,
            )
        )

    def _count_devices(self) -> None:
        up = [instance for instance in self.instances if instance.is_up]
        self._recorder.level("devices", sum(instance.shape.num_devices for instance in up))


def feed(
    clock: VirtualClock,
    requests: Iterable[PlannedRequest],
    submit: Callable[[PlannedRequest], None],
) -> None:
    """Let requests come at their times; one at a time is looked at ahead.

    Raises: ConfigError, when its turn comes, for a request that arrives before the one before it.
    """
    coming = iter(requests)

    def arrive(request: PlannedRequest) -> None:
        submit(request)
        for later in coming:
            if later.arrival_s < clock.now_s:
                raise ConfigError(
                    f"request {later.index} arrives at {later.arrival_s} s, after one at "
                    f"{clock.now_s} s: sort the workload by arrival"
                )
            if later.arrival_s > clock.now_s:
                clock.at(later.arrival_s, functools.partial(arrive, later))
                return
            submit(later)

    first = next(coming, None)
    if first is not None:
        clock.at(first.arrival_s, functools.partial(arrive, first))


def simulate(
    requests: Iterable[PlannedRequest],
    shapes: Sequence[InstanceShape],
    *,
    policy: str = DEFAULT_POLICY,
    bounds: QueueBounds = NO_BOUNDS,
    slo: Slo | None = None,
    warmup_s: float = 0.0,
    duration_s: float = math.inf,
    failures: Sequence[Failure] = (),
    seed: int = 0,
    on_finished: Callable[[FinishedRequest], None] | None = None,
) -> Results:
    """Serve a workload.

    Args:
        requests: by rising arrival; without end only where duration_s is finite.
        shapes: of the instances, one each.
        policy: router.policy.
        bounds: how much may wait on an instance before requests are refused.
        slo: what makes a request good; None: no goodput.
        warmup_s: before anything counts.
        duration_s: results are taken over so long, behind which it ends; inf: until all is answered.
        failures: instances that are lost.
        seed: of what the policy draws.
        on_finished: told of every answered request, e.g. a RequestLog.

    Raises: ConfigError for a workload out of order, a failure of an instance that is not there.
    """
    clock = VirtualClock()
    recorder = Recorder(
        clock, slo=slo, warmup_s=warmup_s, duration_s=duration_s, on_finished=on_finished
    )
    service = SimulatedService(shapes, clock, recorder, policy=policy, bounds=bounds, seed=seed)
    for failure in failures:
        if not 0 <= failure.instance < len(shapes) or failure.time_s < 0:
            raise ConfigError(
                f"failure of instance {failure.instance} at {failure.time_s} s: there are instances "
                f"0 to {len(shapes) - 1}, and time begins at 0"
            )
        clock.at(failure.time_s, functools.partial(service.fail, failure.instance))
    feed(clock, requests, service.submit)
    clock.run(warmup_s + duration_s)
    return recorder.results()
