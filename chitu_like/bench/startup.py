"""From the start of a service to its first answers, phase by phase.

The service runs as users start it, `python -m chitu_like KEY=VALUE...`, once with empty kernel caches and
then with those that it filled: the difference is what compiling costs. Phases are those of its own
report; the rest of the time until /health says 200 is the front end learning of the engine. With
`--command` any other server is started instead, of which only the whole is known.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from chitu_like.bench.provenance import provenance
from chitu_like.bench.result_files import write_json
from chitu_like.cli.command_line import Parser, positive_float, positive_int
from chitu_like.core.ending import DONE
from chitu_like.core.errors import PeerError
from chitu_like.startup_report import read_phases

CACHES = {
    "TRITON_CACHE_DIR": "triton",
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "VLLM_CACHE_ROOT": "vllm",
    "CUDA_CACHE_PATH": "cuda",
}
"""Variables that say where compiled kernels are kept, and a folder for each."""
FRONT_END = "front end sees it"
POLL_S = 0.05
STOP_S = 40.0
PROMPT = [11, 12, 13, 14, 15, 16, 17, 18]


@dataclass(frozen=True, kw_only=True)
class Start:
    """One start.

    Attributes:
        phases: seconds by name, in order; empty for a server that does not tell.
        ready_s: until /health answered 200.
        answers_s: of the first answer of one token, and of the next.
    """

    phases: dict[str, float]
    ready_s: float
    answers_s: list[float]


def run(prog: str, arguments: Sequence[str]) -> int:
    """Start once cold and some times warm, print a table, write JSON if asked to."""
    options = _parser(prog).parse_intermixed_args(arguments)
    with tempfile.TemporaryDirectory(prefix="chitu-startup-") as folder:
        caches = options.cache_dir or Path(folder)
        starts = []
        for number in range(1 + options.warm):
            port = options.port or _free_port()
            command = [word.replace("{port}", str(port)) for word in shlex.split(options.command)]
            if not command:
                keys = [f"serve.port={port}", "serve.drain_timeout_s=1", *options.overrides]
                command = [sys.executable, "-m", "chitu_like", *keys]
            with Server(command, port, caches) as server:
                starts.append(server.measure(options.timeout))
            kind = "cold" if number == 0 and options.cache_dir is None else "warm"
            print(f"{kind}: ready after {starts[-1].ready_s:.2f} s", flush=True)
    Console(soft_wrap=True).print(startup_table(starts[0], starts[1:]))
    if options.json is not None:
        origin = asdict(provenance(prog, arguments, None))
        found = {"cold": asdict(starts[0]), "warm": [asdict(start) for start in starts[1:]]}
        write_json(options.json, {"benchmark": "startup", **origin, **found})
    return DONE


class Server:
    """A server in a process of its own; leaving the context ends it and what it started.

    Args:
        command: starts it.
        port: of 127.0.0.1 where it will listen.
        caches: folder of its compiled kernels.

    Attributes:
        lines: that it wrote so far.
    """

    def __init__(self, command: Sequence[str], port: int, caches: Path) -> None:
        self._url = f"http://127.0.0.1:{port}"
        self._begin_s = time.monotonic()
        places = {name: str(caches / folder) for name, folder in CACHES.items()}
        self._process = subprocess.Popen(
            command,
            env={**os.environ, **places, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # so that all of it can be ended
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Server:
        """Use as a context."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Ask it to stop, and end it where it does not."""
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)
        if self._process.poll() is None or _group_lives(self._process.pid):
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._reader.join(POLL_S)

    def measure(self, timeout_s: float) -> Start:
        """Wait until it is ready, and ask for two answers.

        Raises: PeerError, with the last lines it wrote, if it ends or is not ready in time.
        """
        while not self._is_ready():
            waited_s = time.monotonic() - self._begin_s
            if self._process.poll() is not None or waited_s > timeout_s:
                said = " | ".join(self.lines[-3:])
                raise PeerError(f"the server was not ready after {waited_s:.0f} s; it said: {said}")
            time.sleep(POLL_S)
        ready_s = time.monotonic() - self._begin_s
        model = json.loads(self._ask("/v1/models", None))["data"][0]["id"]
        answers_s = []
        for _ in range(2):
            start_s = time.monotonic()
            self._ask(
                "/v1/completions",
                {"model": model, "prompt": PROMPT, "max_tokens": 1, "temperature": 0},
            )
            answers_s.append(time.monotonic() - start_s)
        phases = next(filter(None, map(read_phases, self.lines)), {})
        if phases:
            phases[FRONT_END] = max(0.0, ready_s - sum(phases.values()))
        return Start(phases=phases, ready_s=ready_s, answers_s=answers_s)

    def _is_ready(self) -> bool:
        try:
            self._ask("/health", None)
        except OSError:  # it does not listen yet, or answers 503
            return False
        return True

    def _ask(self, path: str, body: dict[str, object] | None) -> bytes:
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self._url + path, content, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=STOP_S) as answer:
            return bytes(answer.read())

    def _read(self) -> None:
        assert self._process.stdout is not None, "it was opened"
        for line in self._process.stdout:
            self.lines.append(line.rstrip())


def startup_table(cold: Start, warm: Sequence[Start]) -> Table:
    """Phases of the first start and medians of the others, in seconds."""
    table = Table(title="start to ready, seconds", title_justify="left")
    table.add_column("phase")
    for name in ("cold", "warm", "compiling"):
        table.add_column(name, justify="right")

    def add(name: str, first: float, others: Sequence[float]) -> None:
        again = statistics.median(others) if others else None
        cells = ["-", "-"] if again is None else [f"{again:.2f}", f"{first - again:.2f}"]
        table.add_row(name, f"{first:.2f}", *cells)

    for name, seconds in cold.phases.items():
        add(name, seconds, [start.phases[name] for start in warm if name in start.phases])
    table.add_section()
    add("ready", cold.ready_s, [start.ready_s for start in warm])
    if "weights" in cold.phases:
        rest = [start.ready_s - start.phases.get("weights", 0.0) for start in (cold, *warm)]
        add("ready, weights excluded", rest[0], rest[1:])
    for index, name in enumerate(("first answer", "second answer")):
        add(name, cold.answers_s[index], [start.answers_s[index] for start in warm])
    return table


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog,
        "Start the service and take the time until it is ready, phase by phase: once with empty "
        "kernel caches, then with those that it filled.",
        [
            f"{prog} models=llama-3-8b models.load_format=dummy",
            f"{prog} --warm 1 --command 'vllm serve /models/x --port {{port}}'",
        ],
    )
    parser.add_argument("--warm", type=positive_int, default=2, metavar="N", help="starts after it")
    parser.add_argument(
        "--cache-dir",
        type=Path,
        metavar="FOLDER",
        help="of compiled kernels, so that even the first start may be warm (default: an empty one)",
    )
    parser.add_argument(
        "--command", default="", metavar="TEXT", help="of another server; {port} is replaced"
    )
    parser.add_argument("--port", type=positive_int, metavar="N", help="default: any that is free")
    parser.add_argument("--timeout", type=positive_float, default=300.0, metavar="S")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    parser.add_overrides()
    return parser
