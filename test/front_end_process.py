"""A real front-end process in front of a fake engine: how tests drive the service."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
from fakes import FakeEngine
from processes import PATIENCE_S

from chitu_like.server.front_end_config import FrontEndConfig

REPO = Path(__file__).resolve().parents[1]
SECRET = "s3cret"


class Service:
    """A front-end process and its fake engines."""

    def __init__(self, engines: list[FakeEngine], config: FrontEndConfig) -> None:
        self.engine = engines[0]
        self.engines = engines
        self.process = subprocess.Popen(
            [sys.executable, "-m", "chitu_like.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if os.environ.get("QUIET_HTTP") else None,
            env={**os.environ, "PYTHONPATH": str(REPO)},
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(config.to_json())
        self.process.stdin.flush()
        for instance, engine in enumerate(engines):
            self.order("connect", instance=instance, address=engine.address)
        self.first_event = self.next_event()
        self.port = self.first_event.get("port", 0)
        self.url = f"http://127.0.0.1:{self.port}"

    def next_event(self) -> dict[str, Any]:
        """What it tells its leader next; waits for it."""
        assert self.process.stdout is not None
        event: dict[str, Any] = json.loads(self.process.stdout.readline())
        return event

    def wait_ready(self) -> Service:
        """Wait for its word that clients are served, and see that they are."""
        assert self.next_event() == {"event": "ready"}
        assert httpx.get(f"{self.url}/ready", timeout=60.0).status_code == 200
        return self

    def end(self) -> int:
        """Wait for it to end; its exit code."""
        return self.process.wait(PATIENCE_S)

    def is_healthy(self) -> bool:
        """What a probe finds; one that comes when the process has ended finds nobody."""
        try:
            return httpx.get(f"{self.url}/health", timeout=60.0).status_code == 200
        except httpx.TransportError:
            return False

    def metric(self, series: str) -> float:
        """The value in the first line of /metrics that begins so."""
        lines = httpx.get(f"{self.url}/metrics", timeout=60.0).text.splitlines()
        return float(next(line for line in lines if line.startswith(series)).rpartition(" ")[2])

    def order(self, command: str, **details: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"command": command, **details}).encode() + b"\n")
        self.process.stdin.flush()

    def lose_leader(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def openai(self, api_key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=api_key, max_retries=0, timeout=60.0
        )

    def post(self, path: str, body: object, **options: Any) -> httpx.Response:
        content = json.dumps(body)  # in ASCII: a lone surrogate is an escape
        headers = {"Content-Type": "application/json", **options.pop("headers", {})}
        return httpx.post(
            f"{self.url}{path}", content=content, headers=headers, timeout=60.0, **options
        )

    def chat(self, **fields: Any) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": "hi"}], **fields}
        return self.post("/v1/chat/completions", body)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        for engine in self.engines:
            engine.close()


Start = Callable[..., Service]


def make_starter(stack: ExitStack, tokenizer_dir: Path) -> Start:
    def start(
        engine: dict[str, Any] | None = None,
        wait: bool = True,
        num_instances: int = 1,
        **settings: Any,
    ) -> Service:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="chitu-test-"))
        config = {
            "num_instances": num_instances,
            "secret": SECRET,
            "model_name": "fake",
            "tokenizer_path": str(tokenizer_dir),
            "leader_pid": None,
            **settings,
        }
        engines = [
            FakeEngine(f"ipc://{folder}/engine-{i}", SECRET, **(engine or {}))
            for i in range(num_instances)
        ]
        service = Service(engines, FrontEndConfig(**config))
        stack.callback(service.close)
        return service.wait_ready() if wait else service

    return start
