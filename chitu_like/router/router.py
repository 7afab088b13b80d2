"""Admission and dispatch: the front end's one view of all engines.

The router lets a call in or refuses it at once, chooses an instance for each of its requests, and
carries what the engines answer to the call's inbox. It knows token ids only.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from enum import Enum

from chitu_like.core.errors import CapacityError, ChituError, PeerError
from chitu_like.core.output import RequestDelta
from chitu_like.engine.messages import (
    AddRequest,
    EngineInfo,
    EngineStats,
    Failed,
    Ready,
    StepMessage,
)
from chitu_like.router.admission import QueueBounds, Refused, choose_instances
from chitu_like.router.inbox import Inbox
from chitu_like.router.instance import Engine, Instance, sum_stats
from chitu_like.router.policy import LeastLoaded, Policy

logger = logging.getLogger(__name__)

LAST_WORDS_S = 0.2
"""How long an engine's word that it failed may lag behind the end of its connection."""


class RouterState(Enum):
    """What the service can do now."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class Router:
    """Calls in, deltas out, over one or more engines. Belongs to one event loop.

    While instances load, the loss of one is the failure of all. Once all have been ready an
    instance fails alone: its requests end with an error, and the others serve on. The service
    fails with the last of them.

    Args:
        engines: at least one, connected.
        max_queued_requests, max_queued_tokens: see QueueBounds.
        policy: which instance comes next; None: the least loaded.
        now: seconds on a clock that never goes back.

    Attributes:
        instances: one for each engine, lost ones too; read-only outside.
        on_step: told of every step with the instance and its stats before and after it.
        on_lost: told of every instance that fails.
        failure: why the service cannot go on, or None.
        opened, failed, draining: set when that begins.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        *,
        max_queued_requests: int,
        max_queued_tokens: int,
        policy: Policy | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.instances = tuple(Instance(i, engine) for i, engine in enumerate(engines))
        self._bounds = QueueBounds(requests=max_queued_requests, tokens=max_queued_tokens)
        self._policy = policy or LeastLoaded()
        self._now = now
        self.on_step: Callable[[Instance, EngineStats, EngineStats], None] | None = None
        self.on_lost: Callable[[Instance], None] | None = None
        self._routes: dict[str, tuple[Instance, Inbox]] = {}
        self.draining = asyncio.Event()
        self.failure: str | None = None
        self.opened = asyncio.Event()
        self.failed = asyncio.Event()

    @property
    def up(self) -> list[Instance]:
        """Instances that are not lost."""
        return [instance for instance in self.instances if instance.is_up]

    @property
    def state(self) -> RouterState:
        """What the service can do now."""
        if self.failure is not None:
            return RouterState.FAILED
        if self.draining.is_set():
            return RouterState.DRAINING
        return RouterState.LOADING if self._is_loading else RouterState.READY

    @property
    def _is_loading(self) -> bool:
        return any(instance.info is None for instance in self.instances)

    @property
    def num_open(self) -> int:
        """Requests that have not finished."""
        return len(self._routes)

    @property
    def info(self) -> EngineInfo | None:
        """Limits that hold on every instance, with the pools added up; None while one loads."""
        infos = [instance.info for instance in self.up if instance.info is not None]
        if self._is_loading or not infos:
            return None
        return EngineInfo(
            max_seq_len=min(info.max_seq_len for info in infos),
            max_reqs=sum(info.max_reqs for info in infos),
            num_blocks=sum(info.num_blocks for info in infos),
            block_size=infos[0].block_size,
            vocab_size=min(info.vocab_size for info in infos),
        )

    @property
    def stats(self) -> EngineStats:
        """Stats of all instances: sums, and the mean of kv_usage."""
        return sum_stats(self.instances)

    def seconds_without_progress(self) -> float:
        """How long no instance at all has done anything for its open requests; 0 where one does."""
        now_s = self._now()
        silences = (instance.seconds_without_progress(now_s) for instance in self.up)
        return min(silences, default=0.0)

    def stalled(self, limit_s: float) -> list[Instance]:
        """Instances with open requests and no step for longer than `limit_s`."""
        now_s = self._now()
        return [i for i in self.up if i.seconds_without_progress(now_s) > limit_s]

    async def run(self) -> None:
        """Carry messages until every engine has failed or this is cancelled. Never raises."""
        pumps = [asyncio.ensure_future(self._pump(instance)) for instance in self.instances]
        try:
            await asyncio.wait(pumps)
        finally:
            for pump in pumps:
                pump.cancel()

    def drain(self) -> None:
        """Take no new call; open ones go on."""
        self.draining.set()

    def shut_down(self, error: ChituError) -> None:
        """End every open request with `error` and let the engines go that are ready to hear it."""
        self._cut(error)
        for instance in self.up:
            if instance.info is not None:
                instance.engine.shutdown()

    def fail(self, reason: str) -> None:
        """End every open request with an error and take no more. The first reason stays."""
        if self.failure is not None:
            return
        self.failure = reason
        logger.error("the service has failed: %s", reason)
        self._cut(_lost_request())
        self.failed.set()

    def fail_instance(self, instance: Instance, reason: str) -> None:
        """Lose one instance, and the service with it where it was the last or one still loads."""
        if not instance.is_up or self.failure is not None:
            return
        instance.fail(reason)
        if self.on_lost is not None:
            self.on_lost(instance)
        if not self.up or self._is_loading:
            self.fail(reason)
            return
        logger.error("instance %d has failed, %d left: %s", instance.number, len(self.up), reason)
        self._cut_instance(instance, _lost_request())

    def check_open(self) -> EngineInfo:
        """Return the limits a new call must keep.

        Raises:
            Refused: loading or draining.
            PeerError: the service has failed.
        """
        if self.failure is not None:
            raise PeerError("the engine has failed; the service is going down")
        if self.draining.is_set():
            raise Refused("the service is shutting down", code="draining", retry_after_s=30)
        info = self.info
        if info is None:
            raise Refused("the model is still loading", code="loading", retry_after_s=5)
        return info

    def submit(self, requests: Sequence[AddRequest]) -> Inbox:
        """Send a call's requests to engines, all or none of them.

        Requests that share one prompt list (n > 1) go to one instance, for its prefix cache.

        Raises:
            Refused: no room now, loading or draining.
            RequestError: the call alone is more than the service ever holds.
            PeerError, CapacityError: an engine is gone or has stopped reading.
        """
        self.check_open()
        up = self.up
        loads = [instance.load() for instance in up]
        indices = choose_instances(loads, requests, policy=self._policy, bounds=self._bounds)
        inbox = Inbox(request.request_id for request in requests)
        try:
            for request, index in zip(requests, indices, strict=True):
                instance = up[index]
                instance.engine.add(request)
                instance.given(request, self._now())
                self._routes[request.request_id] = (instance, inbox)
        except (CapacityError, PeerError):
            self.abort(inbox)
            raise
        return inbox

    def abort(self, inbox: Inbox) -> None:
        """Free everything a call still holds on the engines; nothing more reaches its inbox."""
        self.abort_requests(sorted(inbox.open_ids))
        inbox.open_ids.clear()

    def abort_requests(self, request_ids: Sequence[str]) -> None:
        """Free single requests; unknown ids are ignored."""
        by_instance: dict[Instance, list[str]] = {}
        for request_id in request_ids:
            if (route := self._routes.pop(request_id, None)) is not None:
                instance, inbox = route
                inbox.open_ids.discard(request_id)
                instance.closed(request_id)
                by_instance.setdefault(instance, []).append(request_id)
        for instance, ids in by_instance.items():
            _abort_on(instance, ids)

    def _cut(self, error: ChituError) -> None:
        """End every open request with an error; the engines are not told."""
        for request_id, (instance, inbox) in self._routes.items():
            instance.closed(request_id)
            inbox.fail(error)
        self._routes.clear()

    def _cut_instance(self, lost: Instance, error: ChituError) -> None:
        """End the calls that have a request on `lost`; what they have elsewhere is freed."""
        routes = [(name, inbox) for name, (i, inbox) in self._routes.items() if i is lost]
        for request_id, inbox in routes:
            del self._routes[request_id]
            lost.closed(request_id)
            inbox.open_ids.discard(request_id)
        for inbox in dict.fromkeys(inbox for _, inbox in routes):
            self.abort(inbox)
            inbox.fail(error)

    async def _pump(self, instance: Instance) -> None:
        """Carry an engine's messages until it fails or is declared lost."""
        reading = asyncio.ensure_future(self._read(instance))
        gone = asyncio.ensure_future(instance.engine.wait_gone())
        lost = asyncio.ensure_future(instance.lost.wait())
        try:
            await asyncio.wait({reading, gone, lost}, return_when=asyncio.FIRST_COMPLETED)
            if instance.is_up:
                # What it said before it went, such as Failed, may still be in the socket.
                await asyncio.wait({reading}, timeout=LAST_WORDS_S)
            if reading.done():
                reading.result()
            self.fail_instance(instance, "an engine has closed its connection")
        except PeerError as error:
            self.fail_instance(instance, str(error))
        except Exception:  # a fault of ours must not leave clients waiting
            logger.exception("the router broke on a message of an engine")
            self.fail("the router has an internal error")
        finally:
            for part in (reading, gone, lost):
                part.cancel()
            if not instance.is_up:
                instance.engine.close()

    async def _read(self, instance: Instance) -> None:
        async for message in instance.engine.messages():
            if isinstance(message, StepMessage):
                self._stepped(instance, message)
            elif isinstance(message, Ready):
                instance.info = message.info
                if not self._is_loading:
                    self.opened.set()
            elif isinstance(message, Failed):
                self.fail_instance(instance, message.reason)
                return

    def _stepped(self, instance: Instance, message: StepMessage) -> None:
        instance.last_progress_s = self._now()
        previous, instance.stats = instance.stats, message.stats
        if self.on_step is not None:
            self.on_step(instance, previous, message.stats)
        for delta in message.deltas:
            self._deliver(delta)

    def _deliver(self, delta: RequestDelta) -> None:
        route = self._routes.get(delta.request_id)
        if route is None:
            return  # aborted while the step ran
        instance, inbox = route
        if not inbox.push(delta):
            self.abort(inbox)
            inbox.fail(CapacityError("the client does not read its answer"))
        elif delta.finish_reason is not None:
            del self._routes[delta.request_id]
            instance.closed(delta.request_id)
        else:
            instance.answered(delta.request_id)


def _abort_on(instance: Instance, request_ids: Sequence[str]) -> None:
    try:
        instance.engine.abort(request_ids)
    except CapacityError as error:  # it may compute on; nobody waits for these any more
        logger.warning("instance %d was not told of an abort: %s", instance.number, error)


def _lost_request() -> PeerError:
    return PeerError("the engine has failed; this request cannot be finished")
