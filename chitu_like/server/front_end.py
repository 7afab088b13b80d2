"""The front-end process: listens at once, serves when the model is there, ends with its leader.

The leader writes one FrontEndConfig as a JSON line to stdin, then orders, and keeps stdin open. This
process writes JSON lines to stdout: {"event": "listening", "host", "port"}; {"event": "lost",
"instance", "message"} for an instance that failed; {"event": "failed", "message"} for what the user
can put right. Exit codes: 0 drained, 1 leader or engine failed, 2 the
user's mistake.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import shutil
import signal
import socket
from collections.abc import Iterator

import uvicorn
import zmq.asyncio
from starlette.types import ASGIApp

from chitu_like.core.ending import DONE, FAILED, USER_MISTAKE
from chitu_like.core.errors import CapacityError, ChituError, ConfigError, PeerError
from chitu_like.core.garbage import freeze_loaded_objects
from chitu_like.core.logging import configure_logging
from chitu_like.engine.client import EngineClient
from chitu_like.router.instance import Instance
from chitu_like.router.policy import make_policy
from chitu_like.router.router import Router
from chitu_like.server.api import build_app
from chitu_like.server.front_end_config import FrontEndConfig
from chitu_like.server.leader import Connect, Drain, Leader, Order
from chitu_like.server.metrics import Metrics
from chitu_like.server.prompts import PromptMaker
from chitu_like.server.service import Service

logger = logging.getLogger(__name__)

LINGER_S = 1.0
"""After a failure: time for error frames to leave and for a probe to see /health turn 503."""
CLOSE_S = 1.0
"""Time for connections to close at the end."""
POLL_S = 0.1
"""How often draining looks whether the last request has finished."""
UNREAD_TIMEOUT_MS = 60_000
"""How long the system keeps bytes that a client does not take, before it cuts the connection."""


def run() -> int:
    """Serve until drained or until something fails; return the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the leader decides; it tells us through stdin
    _raise_file_limit()
    return asyncio.run(_main())


async def _main() -> int:
    leader = await Leader.listen()
    try:
        config = FrontEndConfig.from_json(await leader.read_line())
        secrets = [config.secret, *config.api_keys, config.admin_api_key or ""]
        configure_logging(
            rank="http", log_dir=config.log_dir, started=config.started, secrets=secrets
        )
        leader.watch(config.leader_pid)
        return await FrontEnd(config, leader).serve()
    except PeerError as error:
        logger.error("%s", error)
        return FAILED
    except ChituError as error:
        leader.tell("failed", message=str(error))  # the leader prints it
        return USER_MISTAKE


class FrontEnd:
    """The process in one object. Belongs to one event loop.

    Args:
        config: what the leader said.
        leader: the leader.
    """

    def __init__(self, config: FrontEndConfig, leader: Leader) -> None:
        self._config = config
        self._leader = leader
        context = zmq.asyncio.Context()
        self._engines = [
            EngineClient(config.secret, context=context) for _ in range(config.num_instances)
        ]
        self._router = Router(
            self._engines,
            max_queued_requests=config.max_queued_requests,
            max_queued_tokens=config.max_queued_tokens,
            policy=make_policy(config.policy, config.seed),
        )
        metrics = Metrics(config.model_name, self._router.instances)
        self._router.on_step = metrics.stepped
        if config.is_supervised:
            self._router.on_lost = self._tell_lost
        self._service = Service(config, self._router, metrics)
        self._is_stalled = False

    async def serve(self) -> int:
        """Run to the end; return the exit code. Raises: ChituError for the user's mistakes."""
        listener = _bind(self._config.host, self._config.port)
        server = _Server(_uvicorn_config(build_app(self._service, self._config)))
        serving = asyncio.ensure_future(server.serve(sockets=[listener]))
        host, port = listener.getsockname()[:2]
        self._leader.tell("listening", host=host, port=port)
        logger.info("listening on http://%s:%d", host, port)
        try:
            return await self._work(serving)
        finally:
            server.should_exit = True
            await asyncio.wait({serving}, timeout=2 * CLOSE_S)
            for engine in self._engines:
                engine.close()
            if self._config.run_dir is not None:
                shutil.rmtree(self._config.run_dir, ignore_errors=True)

    async def _work(self, serving: asyncio.Future[None]) -> int:
        """Everything that goes on beside HTTP, until one part of it ends the service."""
        parts = {
            "router": asyncio.ensure_future(self._router.run()),
            "opening": asyncio.ensure_future(self._open()),
            "orders": asyncio.ensure_future(self._take_orders()),
            "progress": asyncio.ensure_future(self._watch_progress()),
            "drain": asyncio.ensure_future(self._finish_drain()),
        }
        failed = asyncio.ensure_future(self._wait_failed())
        running = {failed, serving, *parts.values()}
        try:
            while True:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for part in done:
                    part.result()  # a user's mistake found while loading goes to the caller
                if failed in done:
                    await self._end_failed()
                    return FAILED
                if parts["drain"] in done:
                    return DONE
                if serving in done:
                    logger.error("the HTTP server has ended by itself")
                    return FAILED
        finally:
            for part in (failed, *parts.values()):
                part.cancel()

    async def _wait_failed(self) -> None:
        await self._router.failed.wait()

    async def _open(self) -> None:
        """Say so once a call would be taken: the text side is read, and every engine is there."""
        await self._load_text()
        await self._router.opened.wait()
        self._leader.tell("ready")

    async def _load_text(self) -> None:
        config = self._config
        loop = asyncio.get_running_loop()
        prompts = await loop.run_in_executor(
            None, PromptMaker.load, config.tokenizer_path, config.chat_template
        )
        freeze_loaded_objects()
        self._service.loaded(prompts)

    async def _take_orders(self) -> None:
        try:
            while True:
                self._follow(await self._leader.read_order())
        except PeerError as error:
            # A leader that said drain may leave as soon as nobody waits for an answer.
            if self._router.num_open or not self._router.draining.is_set():
                self._router.fail(str(error))

    def _follow(self, order: Order) -> None:
        """Do what the leader said. Raises: PeerError for an instance or address there is not."""
        if isinstance(order, Drain):
            self._router.drain()
        elif isinstance(order, Connect):
            if not 0 <= order.instance < len(self._engines):
                raise PeerError(f"the leader named instance {order.instance}, which there is not")
            self._engines[order.instance].connect(order.address)

    def _tell_lost(self, instance: Instance) -> None:
        self._leader.tell("lost", instance=instance.number, message=instance.failure or "")

    async def _watch_progress(self) -> None:
        """Give an instance up that has work and makes no step for `stall_timeout_s`."""
        limit_s = self._config.stall_timeout_s
        while True:
            await asyncio.sleep(limit_s / 4)
            for instance in self._router.stalled(limit_s):
                self._is_stalled = True
                reason = f"no step for {limit_s:g} s with requests open"
                self._router.fail_instance(instance, reason)

    async def _finish_drain(self) -> None:
        """Once draining, wait for the open requests, then let the engines go."""
        await self._router.draining.wait()
        logger.info("draining, open requests: %d", self._router.num_open)
        deadline_s = asyncio.get_running_loop().time() + self._config.drain_timeout_s
        while self._router.num_open and asyncio.get_running_loop().time() < deadline_s:
            await asyncio.sleep(POLL_S)
        self._router.shut_down(CapacityError("the service is shutting down"))
        await asyncio.sleep(POLL_S)  # answers and the last words to the engines leave

    async def _end_failed(self) -> None:
        """Let clients hear of the failure; end a leader that is itself what stands still."""
        if self._is_stalled and not self._config.is_supervised:
            await self._leader.end_stalled()
        else:
            await asyncio.sleep(LINGER_S)


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals as `run` set them."""
        yield


def _uvicorn_config(app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        timeout_keep_alive=60,
        timeout_graceful_shutdown=1,
    )


def _bind(host: str, port: int) -> socket.socket:
    """A listening socket that cuts clients who take nothing. Raises: ConfigError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.create_server(address[:2], family=family, backlog=2048)
    except (OSError, UnicodeError) as error:
        # create_server says the address once more, in brackets
        reason = str(getattr(error, "strerror", None) or error).partition(" (while ")[0]
        raise ConfigError(
            f"cannot listen on {host}:{port}: {reason}; set serve.host and serve.port to a free "
            "address of this machine"
        ) from None
    # Accepted connections inherit it on Linux. A client that reads nothing keeps its window shut;
    # without this its half-sent answer would stay for ever.
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_TIMEOUT_MS)
    return listener


def _raise_file_limit() -> None:
    """Every client is an open file: take what the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
