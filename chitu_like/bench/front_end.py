"""What telling costs: a real front-end process between an invented engine and N streaming clients.

The engine end and all clients live in this process and read raw bytes; the front end is the process
that a service starts. Two measures: *in step*, where the engine waits until every client has the last
token, so that nothing piles up and the processor time is that of a token told alone; and *paced*, where
the engine steps at a given rate whatever happens, which shows whether the front end keeps up.
"""

from __future__ import annotations

import argparse
import os
import secrets
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

import msgspec
from rich.console import Console
from rich.table import Table

from chitu_like.bench.provenance import PACKAGE_DIR, provenance
from chitu_like.bench.result_files import write_json
from chitu_like.cli.command_line import Parser, positive_int, positive_ints
from chitu_like.core.ending import DONE
from chitu_like.core.errors import PeerError
from chitu_like.core.output import FinishReason, RequestDelta
from chitu_like.engine.endpoint import EngineEndpoint
from chitu_like.engine.messages import AddRequest, EngineInfo, EngineStats, Ready, StepMessage
from chitu_like.server.front_end_config import FrontEndConfig
from chitu_like.server.tokenizer import Tokenizer

TEXT = (
    "A front end hears of every token once a step, and tells the client whose it is: naïve, 速い. "
)
END_OF_FRAME = b"}\n\n"
TIMEOUT_S = 30.0
NUM_CONNECTING = 64
"""Clients that connect at a time."""


@dataclass(frozen=True, kw_only=True)
class FrontEndRow:
    """What one run gave.

    Attributes:
        num_streams: clients.
        steps_per_s: the engine's pace; None: in step with the slowest client.
        tokens_per_s: delivered.
        cpu_share: of one core, by the front-end process with all its threads.
        cpu_us: of it for one token.
        lag_ms, lag_p99_ms: from a step's message to the client's bytes.
    """

    num_streams: int
    steps_per_s: float | None
    tokens_per_s: float
    cpu_share: float
    cpu_us: float
    lag_ms: float
    lag_p99_ms: float


class Client:
    """One stream: counts the frames of its answer and how old they are."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
        self.num_frames = 0  # with tokens
        self._has_begun = False
        self.is_done = False
        self._tail = b""
        body = b'{"messages":[{"role":"user","content":"hi"}],"stream":true}'
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json"
        self.socket.sendall(f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        self.socket.setblocking(False)

    def read(self) -> None:
        """Take what there is. Raises: PeerError where the front end has closed."""
        received = self.socket.recv(1 << 16)
        if not received:
            raise PeerError("the front end closed a stream")
        received = self._tail + received
        self.num_frames += received.count(END_OF_FRAME)
        if self.num_frames and not self._has_begun:
            self._has_begun = True
            self.num_frames -= 1  # the first frame carries the role
        self.is_done = self.is_done or b"[DONE]" in received
        self._tail = received[-len(END_OF_FRAME) + 1 :]


class FrontEndLoad:
    """A front end, its engine and its clients. Use as a context.

    Args:
        tokenizer_path: folder of a tokenizer.
        num_streams: clients.
    """

    def __init__(self, tokenizer_path: Path, num_streams: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="chitu-like-bench-")
        secret = secrets.token_hex(16)
        self._token_ids = Tokenizer.load(tokenizer_path).encode(TEXT, add_special_tokens=False)
        self._endpoint = EngineEndpoint(f"ipc://{self._folder.name}/engine", secret)
        config = FrontEndConfig(
            num_instances=1,
            secret=secret,
            model_name="bench",
            tokenizer_path=str(tokenizer_path),
            log_dir=self._folder.name,
        )
        self._process = subprocess.Popen(
            [sys.executable, "-m", "chitu_like.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._tell(config.to_json())
        order = {"command": "connect", "instance": 0, "address": self._endpoint.address}
        self._tell(msgspec.json.encode(order) + b"\n")
        self._num_streams = num_streams
        self._clients: list[Client] = []
        self._selector = selectors.DefaultSelector()
        self._request_ids: list[str] = []
        self._sent_s: list[float] = []
        self._lags_s: list[float] = []

    def __enter__(self) -> FrontEndLoad:
        """Connect every client and take its request."""
        assert self._process.stdout is not None
        port = int(msgspec.json.decode(self._process.stdout.readline())["port"])
        self._endpoint.receive(TIMEOUT_S)  # Hello
        self._endpoint.send(Ready(EngineInfo(1 << 20, self._num_streams, 1 << 20, 16, 1 << 20)))
        time.sleep(1.0)  # the tokenizer is read
        while len(self._request_ids) < self._num_streams:
            for _ in range(min(NUM_CONNECTING, self._num_streams - len(self._clients))):
                client = Client(port)
                self._clients.append(client)
                self._selector.register(client.socket, selectors.EVENT_READ, client)
            while len(self._request_ids) < len(self._clients):
                message = self._endpoint.receive(TIMEOUT_S)
                if not isinstance(message, AddRequest):
                    raise PeerError(f"the front end sent {message} where a request was due")
                self._request_ids.append(message.request_id)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the front end; it goes when its leader does."""
        for client in self._clients:
            client.socket.close()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(TIMEOUT_S)
        self._endpoint.__exit__(kind, error, trace)
        self._folder.cleanup()

    def run(self, num_steps: int, steps_per_s: float | None) -> FrontEndRow:
        """Step so often, and wait until all has been delivered."""
        first = len(self._sent_s)
        self._lags_s.clear()
        begin_s, begin_cpu_s = time.perf_counter(), self._cpu_s()
        for step in range(first, first + num_steps):
            if steps_per_s is None:
                self._read_until(lambda sent=step: self._slowest() >= sent)  # type: ignore[misc]
            else:
                due_s = begin_s + (step - first) / steps_per_s
                self._read_until(lambda due_s=due_s: time.perf_counter() >= due_s)  # type: ignore[misc]
            self._step(step)
        self._read_until(lambda: self._slowest() >= first + num_steps)
        wall_s = time.perf_counter() - begin_s
        cpu_s, num_tokens = self._cpu_s() - begin_cpu_s, num_steps * self._num_streams
        return FrontEndRow(
            num_streams=self._num_streams,
            steps_per_s=steps_per_s,
            tokens_per_s=num_tokens / wall_s,
            cpu_share=cpu_s / wall_s,
            cpu_us=cpu_s / num_tokens * 1e6,
            lag_ms=statistics.median(self._lags_s) * 1e3,
            lag_p99_ms=statistics.quantiles(self._lags_s, n=100)[98] * 1e3,
        )

    def finish(self) -> None:
        """End every request, and see every stream end as it should."""
        ends = [
            RequestDelta(name, self._token_ids[:1], finish_reason=FinishReason.LENGTH)
            for name in self._request_ids
        ]
        self._endpoint.send(StepMessage(ends, EngineStats()))
        self._read_until(lambda: all(client.is_done for client in self._clients))

    def _step(self, step: int) -> None:
        token_id = self._token_ids[step % len(self._token_ids)]
        deltas = [RequestDelta(name, [token_id]) for name in self._request_ids]
        stats = EngineStats(num_running=self._num_streams, num_steps=step + 1)
        self._endpoint.send(StepMessage(deltas, stats))
        self._sent_s.append(time.perf_counter())

    def _slowest(self) -> int:
        """Tokens that every client has."""
        return min(client.num_frames for client in self._clients)

    def _read_until(self, is_over: Callable[[], bool]) -> None:
        deadline_s = time.perf_counter() + TIMEOUT_S
        while not is_over():
            if time.perf_counter() > deadline_s:
                raise PeerError(f"nothing more was delivered within {TIMEOUT_S:g} s")
            for key, _ in self._selector.select(0.0005):
                client: Client = key.data
                client.read()
                if 0 < client.num_frames <= len(self._sent_s):
                    age_s = time.perf_counter() - self._sent_s[client.num_frames - 1]
                    self._lags_s.append(age_s)

    def _tell(self, line: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line)
        self._process.stdin.flush()

    def _cpu_s(self) -> float:
        """Processor time of the front end so far: utime and stime of proc(5)."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run(prog: str, arguments: Sequence[str]) -> int:
    """Measure, print a table, write JSON if asked to."""
    options = _parser(prog).parse_args(arguments)
    rows = [row for num in options.streams for row in measure(options, num)]
    Console(soft_wrap=True, width=120).print(_table(rows))
    if options.json is not None:
        origin = provenance(prog, arguments, None)
        results = {"benchmark": "front-end", **asdict(origin)}
        write_json(options.json, {**results, "rows": [asdict(row) for row in rows]})
    return DONE


def measure(options: argparse.Namespace, num_streams: int) -> list[FrontEndRow]:
    """So many streams in step, then at each pace."""
    with FrontEndLoad(options.tokenizer, num_streams) as load:
        load.run(options.warmup, None)
        rows = [load.run(options.steps, None)]
        rows += [load.run(options.steps, pace) for pace in options.pace]
        load.finish()
    return rows


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog,
        "Measure the front-end process: what a token costs between the engine's message and the "
        "client's socket, and at which pace the front end falls behind.",
        [f"{prog} --streams 1,64,256 --pace 100,300"],
    )
    for option, default, meaning in (
        ("--streams", [256], "clients at once (default: 256)"),
        ("--pace", [100, 300], "engine steps a second of the paced runs (default: 100,300)"),
    ):
        parser.add_argument(
            option, type=positive_ints, default=default, metavar="N,...", help=meaning
        )
    for option, number, meaning in (
        ("--steps", 600, "steps of each run (default: 600)"),
        ("--warmup", 100, "steps before them (default: 100)"),
    ):
        parser.add_argument(option, type=positive_int, default=number, metavar="N", help=meaning)
    parser.add_argument(
        "--tokenizer",
        type=Path,
        default=PACKAGE_DIR / "assets" / "tiny-chat",
        metavar="DIR",
        help="folder of the tokenizer (default: that of tiny-chat)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    return parser


def _table(rows: Sequence[FrontEndRow]) -> Table:
    table = Table(title="cost of telling", title_justify="left")
    for name in ("streams", "steps/s", "tokens/s", "CPU", "CPU us a token", "lag ms", "p99"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            str(row.num_streams),
            "in step" if row.steps_per_s is None else f"{row.steps_per_s:g}",
            f"{row.tokens_per_s:.0f}",
            f"{row.cpu_share:.0%}",
            f"{row.cpu_us:.1f}",
            f"{row.lag_ms:.1f}",
            f"{row.lag_p99_ms:.1f}",
        )
    return table
