"""The whole service in processes of its own, as a user starts it: how tests drive it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import psutil
from processes import PATIENCE_S, alive, free_port, until

REPO = Path(__file__).resolve().parents[1]
KEYS = ("models=tiny-chat", "dtype=float32", "infer.device=cpu", "infer.num_blocks=512")


class Server:
    """`python -m chitu_like`, or the same under torchrun with so many ranks."""

    def __init__(self, log_dir: Path, *keys: str, num_ranks: int | None = None) -> None:
        self.port = free_port()
        start = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_ranks)]
        command = [sys.executable, *(start if num_ranks else []), "-m", "chitu_like", *KEYS, *keys]
        self.process = subprocess.Popen(
            [*command, f"serve.port={self.port}", f"log_dir={log_dir}"],
            cwd=log_dir,
            env={**os.environ, "PYTHONPATH": str(REPO)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.output: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = f"http://127.0.0.1:{self.port}"
        self._seen: list[psutil.Process] = []

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.output.extend(iter(self.process.stdout.readline, ""))

    def wait_ready(self) -> Server:
        until(lambda: self.status("/ready") == 200 or self.process.poll() is not None)
        assert self.process.poll() is None, "".join(self.output)
        self._seen = self.family()
        return self

    def end(self) -> int:
        """Wait for it to end, and for `output` to be whole; its exit code."""
        code = self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        return code

    def status(self, path: str) -> int:
        try:
            return httpx.get(self.url + path, timeout=10.0).status_code
        except httpx.TransportError:
            return 0

    def load(self) -> dict[str, float]:
        found: dict[str, float] = httpx.get(self.url + "/load", timeout=60.0).json()
        return found

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url + "/v1", api_key="x", max_retries=0, timeout=60.0)

    def family(self) -> list[psutil.Process]:
        """The process, its front end and whatever else it started."""
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def leader(self) -> psutil.Process:
        """The rank itself, also under torchrun."""
        ranks = [p for p in self.family() if "chitu_like" in p.cmdline()]
        return next(p for p in ranks if "torch.distributed.run" not in p.cmdline())

    def survivors(self) -> list[psutil.Process]:
        """Processes that were there when it was ready and still are."""
        return alive(self._seen)

    def until_gone(self) -> None:
        """Wait until none of them is left."""
        until(lambda: not self.survivors())

    def close(self) -> None:
        started = self.family() if self.process.poll() is None else []
        for process in {*started, *self.survivors()}:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        print("".join(self.output))  # pytest shows it where the test has failed


def long_stream(server: Server, max_tokens: int = 1500) -> Iterator[str]:
    """Lines of a streamed completion that would take many seconds."""
    body = {"prompt": "Once upon a time", "max_tokens": max_tokens, "stream": True}
    body |= {"ignore_eos": True, "temperature": 0}
    with httpx.stream("POST", server.url + "/v1/completions", json=body, timeout=60.0) as response:
        assert response.status_code == 200
        yield from response.iter_lines()
