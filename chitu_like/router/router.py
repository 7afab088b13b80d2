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
from chitu_like.router.policy import Policy, least_loaded

logger = logging.getLogger(__name__)

LAST_WORDS_S = 0.2
"""How long an engine's word that it failed may lag behind the signs of it: its connection closed,
its requests ended with errors."""


class RouterState(Enum):
    """What the service can do now."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class Router:
    """Calls in, deltas out, over one or more engines. Belongs to one event loop.

    Args:
        engines: at least one, connected.
        max_queued_requests, max_queued_tokens: see QueueBounds.
        policy: which instance comes next.
        now: seconds on a clock that never goes back.

    Attributes:
        on_step: told of every step with the instance's stats before and after it, for metrics.
        failure: why the service cannot go on, or None.
        failed, draining: set when that begins.
        last_progress_s: when an engine last reported a step, or work began on an idle service.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        *,
        max_queued_requests: int,
        max_queued_tokens: int,
        policy: Policy = least_loaded,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._instances = [Instance(engine) for engine in engines]
        self._bounds = QueueBounds(requests=max_queued_requests, tokens=max_queued_tokens)
        self._policy = policy
        self._now = now
        self.on_step: Callable[[EngineStats, EngineStats], None] | None = None
        self._routes: dict[str, tuple[Instance, Inbox]] = {}
        self.draining = asyncio.Event()
        self.failure: str | None = None
        self.failed = asyncio.Event()
        self.last_progress_s = now()

    @property
    def state(self) -> RouterState:
        """What the service can do now."""
        if self.failure is not None:
            return RouterState.FAILED
        if self.draining.is_set():
            return RouterState.DRAINING
        is_ready = all(instance.info is not None for instance in self._instances)
        return RouterState.READY if is_ready else RouterState.LOADING

    @property
    def num_open(self) -> int:
        """Requests that have not finished."""
        return len(self._routes)

    @property
    def info(self) -> EngineInfo | None:
        """Limits that hold on every instance, with the pools added up; None while one loads."""
        infos = [instance.info for instance in self._instances if instance.info is not None]
        if len(infos) < len(self._instances):
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
        return sum_stats([instance.stats for instance in self._instances])

    def seconds_without_progress(self) -> float:
        """How long open requests have seen no step; 0 with none open."""
        return self._now() - self.last_progress_s if self._routes else 0.0

    async def run(self) -> None:
        """Carry messages until an engine fails or this is cancelled. Never raises."""
        pumps = [asyncio.ensure_future(self._pump(instance)) for instance in self._instances]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()

    def drain(self) -> None:
        """Take no new call; open ones go on."""
        self.draining.set()

    def fail(self, reason: str) -> None:
        """End every open request with an error and take no more. The first reason stays."""
        if self.failure is not None:
            return
        self.failure = reason
        logger.error("the service has failed: %s", reason)
        self.cut_all(PeerError("the engine has failed; this request cannot be finished"))
        self.failed.set()

    def cut_all(self, error: ChituError) -> None:
        """End every open request with an error; the engines are not told."""
        for request_id, (instance, inbox) in self._routes.items():
            instance.closed(request_id)
            inbox.fail(error)
        self._routes.clear()

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
        loads = [instance.load() for instance in self._instances]
        indices = choose_instances(loads, requests, policy=self._policy, bounds=self._bounds)
        chosen = [self._instances[index] for index in indices]
        inbox = Inbox(request.request_id for request in requests)
        if not self._routes:
            self.last_progress_s = self._now()
        try:
            for request, instance in zip(requests, chosen, strict=True):
                instance.engine.add(request)
                instance.opened(request)
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
            instance.engine.abort(ids)

    async def _pump(self, instance: Instance) -> None:
        gone = asyncio.ensure_future(instance.engine.wait_gone())
        reading = asyncio.ensure_future(self._read(instance))
        try:
            await asyncio.wait({gone, reading}, return_when=asyncio.FIRST_COMPLETED)
            # What it said before it went, such as Failed, may still be in the socket.
            await asyncio.wait({reading}, timeout=LAST_WORDS_S)
            if reading.done():
                reading.result()
            self.fail("an engine has closed its connection")
        except PeerError as error:
            self.fail(str(error))
        except Exception:  # a fault of ours must not leave clients waiting
            logger.exception("the router broke on a message of an engine")
            self.fail("the router has an internal error")
        finally:
            gone.cancel()
            reading.cancel()

    async def _read(self, instance: Instance) -> None:
        async for message in instance.engine.messages():
            if isinstance(message, StepMessage):
                self._stepped(instance, message)
            elif isinstance(message, Ready):
                instance.info = message.info
            elif isinstance(message, Failed):
                self.fail(message.reason)
                return

    def _stepped(self, instance: Instance, message: StepMessage) -> None:
        self.last_progress_s = self._now()
        previous, instance.stats = instance.stats, message.stats
        if self.on_step is not None:
            self.on_step(previous, message.stats)
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
