"""What deciding and telling cost: a step of an instance whose model takes no time at all.

The scheduler, the control channel with its real sockets and processes, the workers' host work and the
answer on its way to the front end, one after the other: no overlap and no device hides anything here,
so a step's time is the shortest that an instance could ever take. Ranks hold no model and answer at
once with an invented token; all requests decode.
"""

from __future__ import annotations

import argparse
import secrets
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from chitu_like.bench.idle_rank import SILENCE_S, VOCAB_SIZE, IdleRank, Seat
from chitu_like.bench.provenance import provenance
from chitu_like.bench.result_files import write_json
from chitu_like.cli.command_line import Parser, positive_int, positive_ints
from chitu_like.core.ending import DONE
from chitu_like.core.errors import PeerError
from chitu_like.core.garbage import freeze_loaded_objects
from chitu_like.core.output import StepOutput
from chitu_like.core.request import Request
from chitu_like.core.sampling_params import SamplingParams
from chitu_like.distributed.channel import LeaderChannel
from chitu_like.engine.messages import EngineStats, StepMessage
from chitu_like.kvcache.block_manager import BlockManager
from chitu_like.scheduler.limits import SchedulerLimits
from chitu_like.scheduler.policy import Ordering
from chitu_like.scheduler.scheduler import Scheduler
from chitu_like.worker.device import device_facts
from chitu_like.worker.messages import Execute, Executed, FromWorker, Stop, ToWorker

LOCALHOST = "127.0.0.1"
BLOCK_SIZE = 16
PROMPT_LEN = 512
STOP_TIMEOUT_S = 10.0
PARTS = {
    "schedule": "choose the batch",
    "send": "encode it and hand it to the sockets",
    "own part": "the leader's own host work: slots and tensors",
    "answer": "wait for the last worker's output",
    "update": "take the tokens in",
    "tell": "encode the step for the front end",
}


@dataclass(frozen=True, kw_only=True)
class ControlRow:
    """Costs of a step; medians, but for p99.

    Attributes:
        num_workers: ranks beside the leader.
        num_running: requests, all decoding.
        message_bytes: of the batch, as every worker gets it.
        parts_us: microseconds by the names of PARTS.
        step_ms, step_p99_ms: of all parts together.
    """

    num_workers: int
    num_running: int
    message_bytes: float
    parts_us: dict[str, float]
    step_ms: float
    step_p99_ms: float


class ControlPath:
    """An instance without a model, stepped by hand.

    Args:
        num_running: requests that decode.
        num_workers: processes beside this one.
        num_steps: decode steps that will be made.
        policy: as scheduler.type.
    """

    def __init__(self, *, num_running: int, num_workers: int, num_steps: int, policy: str) -> None:
        max_seq_len = PROMPT_LEN + num_steps + 1
        max_blocks = -(-max_seq_len // BLOCK_SIZE)
        limits = SchedulerLimits(
            max_reqs=num_running,
            max_seq_len=max_seq_len,
            max_num_batched_tokens=2 * PROMPT_LEN * num_running,
            prefill_chunk_size=2 * PROMPT_LEN * num_running,
        )
        blocks = BlockManager(2 * num_running * max_blocks, BLOCK_SIZE)
        self._num_running = num_running
        self._scheduler = Scheduler(limits, blocks, Ordering(policy))
        self._own = IdleRank(max_reqs=num_running, max_blocks=max_blocks, block_size=BLOCK_SIZE)
        self._encoder = msgspec.msgpack.Encoder()
        self._laps: dict[str, list[float]] = defaultdict(list)
        self._bytes: list[int] = []
        self._workers: list[subprocess.Popen[str]] = []
        self._channel: LeaderChannel[ToWorker, FromWorker] | None = None
        if num_workers:
            self._channel = self._hire(num_workers, num_running, max_blocks)
        for index in range(num_running):
            self._scheduler.add(_request(index, num_steps + 1))

    def step(self) -> None:
        """Schedule, send, compute nothing, update, tell."""
        with self._lap("schedule"):
            batch = self._scheduler.schedule(time.monotonic())
        if batch is None:
            raise RuntimeError("every request has ended")
        with self._lap("send"):
            if self._channel is not None:
                self._channel.send(Execute(batch))
        with self._lap("own part"):
            output = self._own.execute(batch)
        with self._lap("answer"):
            if self._channel is not None:
                output = self._answer(self._channel)
        with self._lap("update"):
            deltas = self._scheduler.update(batch, output, time.monotonic())
        with self._lap("tell"):
            self._encoder.encode(StepMessage(deltas, EngineStats()))
        self._bytes.append(len(self._encoder.encode(Execute(batch))))

    def forget(self) -> None:
        """Drop the times taken so far."""
        self._laps.clear()
        self._bytes.clear()

    def row(self) -> ControlRow:
        """Medians of the steps since `forget`."""
        steps = [sum(laps) for laps in zip(*self._laps.values(), strict=True)]
        return ControlRow(
            num_workers=len(self._workers),
            num_running=self._num_running,
            message_bytes=statistics.median(self._bytes),
            parts_us={part: statistics.median(self._laps[part]) * 1e6 for part in PARTS},
            step_ms=statistics.median(steps) * 1e3,
            step_p99_ms=statistics.quantiles(steps, n=100)[98] * 1e3,
        )

    def close(self) -> None:
        """End the workers."""
        if self._channel is not None:
            self._channel.stop(Stop(), STOP_TIMEOUT_S)
        for worker in self._workers:
            worker.wait(STOP_TIMEOUT_S)

    def _hire(
        self, num_workers: int, max_reqs: int, max_blocks: int
    ) -> LeaderChannel[ToWorker, FromWorker]:
        secret = secrets.token_hex(16)
        channel: LeaderChannel[ToWorker, FromWorker] = LeaderChannel(
            LOCALHOST,
            secret,
            num_workers,
            from_worker=FromWorker,
            silence_s=SILENCE_S,
            on_lost=lambda rank, reason: None,  # the next receive raises it
        )
        for rank in range(1, num_workers + 1):
            seat = Seat(
                address=channel.address,
                secret=secret,
                rank=rank,
                answers=rank == num_workers,
                max_reqs=max_reqs,
                max_blocks=max_blocks,
                block_size=BLOCK_SIZE,
            )
            self._workers.append(_start_worker(seat))
        channel.accept(SILENCE_S)
        return channel

    def _answer(self, channel: LeaderChannel[ToWorker, FromWorker]) -> StepOutput:
        _, message = channel.receive(SILENCE_S)
        if not isinstance(message, Executed):
            raise PeerError(f"a worker answered {type(message).__name__} to a batch")
        return message.output

    @contextmanager
    def _lap(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._laps[part].append(time.perf_counter() - start)


def run(prog: str, arguments: Sequence[str]) -> int:
    """Measure, print a table, write JSON if asked to."""
    options = _parser(prog).parse_args(arguments)
    rows = [
        measure(options, num_workers=num_workers, num_running=num_running)
        for num_workers in options.workers
        for num_running in options.running
    ]
    Console(soft_wrap=True, width=120).print(_table(rows))
    if options.json is not None:
        origin = provenance(prog, arguments, device_facts("cpu"))
        results = {"benchmark": "control", **asdict(origin)}
        write_json(options.json, {**results, "rows": [asdict(row) for row in rows]})
    return DONE


def measure(options: argparse.Namespace, *, num_workers: int, num_running: int) -> ControlRow:
    """Step an instance of that size."""
    path = ControlPath(
        num_running=num_running,
        num_workers=num_workers,
        num_steps=options.warmup + options.steps,
        policy=options.policy,
    )
    try:
        for _ in range(1 + options.warmup):  # the first one is the prefill
            path.step()
        freeze_loaded_objects()
        path.forget()
        for _ in range(options.steps):
            path.step()
        return path.row()
    finally:
        path.close()


def _request(index: int, num_tokens: int) -> Request:
    first = index * PROMPT_LEN  # no two prompts share a block
    length = PROMPT_LEN - index % BLOCK_SIZE  # in every step a few begin a block, as in service
    return Request(
        request_id=f"chatcmpl-{index:032x}",
        prompt_token_ids=[(first + i) % VOCAB_SIZE for i in range(length)],
        params=SamplingParams(max_tokens=num_tokens, temperature=0.7, top_p=0.9),
        max_output_tokens=num_tokens,
        eos_token_ids=frozenset([0]),
    )


def _start_worker(seat: Seat) -> subprocess.Popen[str]:
    worker = subprocess.Popen(
        [sys.executable, "-m", "chitu_like.bench.idle_rank"], stdin=subprocess.PIPE, text=True
    )
    if worker.stdin is None:
        raise RuntimeError("a pipe was asked for")
    with worker.stdin as stdin:
        stdin.write(msgspec.json.encode(seat).decode() + "\n")
    return worker


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog,
        "Measure what a decode step costs beside the model: scheduling, the control channel to "
        "worker processes, their host work, and the message to the front end.",
        [f"{prog} --running 256 --workers 1,3"],
    )
    running, workers = "requests at once (default: 256)", "ranks beside the leader (default: 0,1,3)"
    parser.add_argument(
        "--running", type=positive_ints, default=[256], metavar="N,...", help=running
    )
    parser.add_argument("--workers", type=_counts, default=[0, 1, 3], metavar="N,...", help=workers)
    for option, default, meaning in (
        ("--steps", 500, "steps to time"),
        ("--warmup", 50, "steps before these"),
    ):
        text = f"{meaning} (default: {default})"
        parser.add_argument(option, type=positive_int, default=default, metavar="N", help=text)
    parser.add_argument("--policy", default="prefill_first", help="as scheduler.type")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    return parser


def _counts(text: str) -> list[int]:
    """An argument of numbers from 0 up."""
    numbers = [int(part) for part in text.split(",")]
    if min(numbers) < 0:
        raise argparse.ArgumentTypeError(f"{text!r}: a number of workers is at least 0")
    return numbers


def _table(rows: Sequence[ControlRow]) -> Table:
    table = Table(title="control cost of a decode step", title_justify="left")
    for name in ("running", "workers", "bytes", *(f"{part} us" for part in PARTS)):
        table.add_column(name, justify="right")
    table.add_column("step ms", justify="right")
    table.add_column("p99", justify="right")
    for row in rows:
        table.add_row(
            str(row.num_running),
            str(row.num_workers),
            f"{row.message_bytes:.0f}",
            *(f"{row.parts_us[part]:.0f}" for part in PARTS),
            f"{row.step_ms:.2f}",
            f"{row.step_p99_ms:.2f}",
        )
    return table
