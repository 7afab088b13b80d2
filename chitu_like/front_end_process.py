"""The leader's end of the front-end process: start it, tell it to drain, notice its end."""

from __future__ import annotations

import logging
import os
import secrets
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from types import TracebackType

import msgspec

from chitu_like.config.schema import ServeConfig
from chitu_like.core.errors import ConfigError, PeerError
from chitu_like.model_files import ModelFiles
from chitu_like.server.front_end_config import FrontEndConfig
from chitu_like.server.leader import Connect, Drain

logger = logging.getLogger(__name__)

END_TIMEOUT_S = 3.0
"""What a front end needs to say goodbye to its clients."""


def engine_address(folder: str, instance: int) -> str:
    """What an engine on the front end's own machine binds."""
    return f"ipc://{folder}/engine-{instance}"


class _Event(msgspec.Struct):
    """A line the front end writes to its standard output; see server/front_end.py."""

    event: str
    host: str = ""
    port: int = 0
    instance: int = 0
    message: str = ""


class FrontEndProcess:
    """A running front end. Use it as a context: leaving it ends the process.

    It is started as a new program, never forked, and before this process touches CUDA. It lives as
    long as its standard input is open, so it cannot outlive the leader.

    Args:
        config: the whole configuration.
        files: of the model.
        started: name of this run's log folder.
        is_supervised: this process is the supervisor of many ranks: it says with `connect` where
            the engines are, and ends the ranks of lost instances. Else it is the one engine's.

    Attributes:
        url: where it listens.
        secret: what opens an engine to it.
        folder: of mode 0700, for the sockets of engines on this machine.

    Raises:
        ConfigError: the front end cannot start with this configuration (the port is taken).
        PeerError: it died without saying why.
    """

    def __init__(
        self,
        config: ServeConfig,
        files: ModelFiles,
        started: str,
        *,
        is_supervised: bool = False,
    ) -> None:
        """Start it and wait until it listens."""
        # Mode 0700: ours alone. Whoever ends last removes it, here or in the front end.
        self._folder = tempfile.TemporaryDirectory(prefix="chitu-like-", ignore_cleanup_errors=True)
        self._is_supervised = is_supervised
        self.secret = secrets.token_hex(32)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "chitu_like.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the leader, even while this one still imports
        )
        self._is_draining = False
        self._is_ended = threading.Event()
        try:
            self._write(self._config_line(config, files, started))
            self.url = self._wait_listening()
            if not is_supervised:
                self.connect(0, self.engine_address)
        except BaseException:
            self.end()
            raise

    @property
    def folder(self) -> str:
        """See the class."""
        return self._folder.name

    @property
    def engine_address(self) -> str:
        """What the one engine of this process binds."""
        return engine_address(self.folder, 0)

    @property
    def invitation(self) -> str:
        """What to print once it is ready, as rich text."""
        return f"[bold]ready: open {self.url}/ to chat[/bold]  (API at {self.url}/v1, Ctrl-C stops)"

    def connect(self, instance: int, address: str) -> None:
        """Say where an instance's engine is."""
        self._write(msgspec.json.encode(Connect(instance=instance, address=address)) + b"\n")

    def drain(self) -> None:
        """Refuse new requests, finish the open ones, then stop the engine and exit."""
        self._is_draining = True
        self._write(msgspec.json.encode(Drain()) + b"\n")

    def when_ended(
        self,
        call: Callable[[int, str], None],
        *,
        when_ready: Callable[[], None] | None = None,
        when_lost: Callable[[int], None] | None = None,
    ) -> None:
        """Call `call(exit code, reason)` from a thread when the process is gone before `end`.

        Before that it calls `when_ready()` once clients are served, and `when_lost(instance)` for
        each instance that the front end gave up.

        Code 0 says that it has drained. Then the engine was told to stop, so where it is this
        process's own it is given END_TIMEOUT_S to do so: it has not heard where it was still loading.
        """

        def watch() -> None:
            reason = ""
            while (event := self._read_event()) is not None:
                if event.event == "failed":
                    reason = event.message
                elif event.event == "ready" and when_ready is not None:
                    when_ready()
                elif event.event == "lost" and when_lost is not None:
                    when_lost(event.instance)
            code = self._process.wait()
            if code == 0 and not self._is_supervised:
                self._is_ended.wait(END_TIMEOUT_S)
            if not self._is_ended.is_set():
                self.remove_folder()
                call(code, reason or f"the front end ended with code {code}")

        threading.Thread(target=watch, name="front-end-watch", daemon=True).start()

    def end(self) -> int:
        """Have it drain, wait for its goodbye, and remove what it left; its exit code."""
        self._is_ended.set()
        if not self._is_draining:
            self.drain()
        if self._process.stdin is not None:
            try:
                self._process.stdin.close()
            except BrokenPipeError:
                logger.info("the front end was gone before it was told to end")
        try:
            return self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
        finally:
            self.remove_folder()

    def remove_folder(self) -> None:
        """Remove what it left, where `end` will not be called. May be called twice."""
        self._folder.cleanup()

    def __enter__(self) -> FrontEndProcess:
        """Use as a context."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the process."""
        self.end()

    def _config_line(self, config: ServeConfig, files: ModelFiles, started: str) -> bytes:
        serve, limits = config.serve, config.scheduler
        bounds = {
            name: value
            for name, value in (
                ("max_queued_requests", limits.max_queued_requests),
                ("max_queued_tokens", limits.max_queued_tokens),
            )
            if value != "auto"
        }
        return FrontEndConfig(
            num_instances=config.deploy.replicas,
            secret=self.secret,
            model_name=config.served_name,
            host=serve.host,
            port=serve.port,
            api_keys=list(serve.api_keys),
            admin_api_key=serve.admin_api_key,
            tokenizer_path=str(files.tokenizer_dir) if files.tokenizer_dir else None,
            eos_token_ids=files.eos_token_ids,
            policy=config.router.policy,
            seed=config.infer.seed,
            sampling_defaults=files.sampling_defaults,
            ignore_eos=not config.infer.stop_with_eos,
            drain_timeout_s=serve.drain_timeout_s,
            request_timeout_s=serve.request_timeout_s,
            stall_timeout_s=serve.stall_timeout_s,
            leader_pid=os.getpid(),
            is_supervised=self._is_supervised,
            run_dir=self._folder.name,
            log_dir=config.log_dir,
            started=started,
            **bounds,  # type: ignore[arg-type]
        ).to_json()

    def _wait_listening(self) -> str:
        """The address it listens on."""
        event = self._read_event()
        if event is None:
            raise PeerError(
                f"the front end ended with code {self._process.wait()} before it listened: "
                "see http.log"
            )
        if event.event == "failed":
            raise ConfigError(event.message)
        host = f"[{event.host}]" if ":" in event.host else event.host
        return f"http://{host}:{event.port}"

    def _read_event(self) -> _Event | None:
        """The next line it writes; None when it has ended."""
        if self._process.stdout is None:
            raise RuntimeError("the front end was started without a pipe")
        for line in self._process.stdout:
            if line.startswith(b'{"event":'):
                return msgspec.json.decode(line, type=_Event)
            logger.warning("the front end printed %r", line)  # a package that talks
        return None

    def _write(self, line: bytes) -> None:
        if self._process.stdin is None:
            raise RuntimeError("the front end was started without a pipe")
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):  # ValueError: a signal came behind `end`
            logger.info("the front end has closed its input")
