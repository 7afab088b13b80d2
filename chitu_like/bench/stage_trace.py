"""When each stage computed: spans noted on every rank, their busy share, and a trace of all of them.

A span is the time in which a rank computes its part of a batch; waiting for the stage before, or for
tokens of the last stage, is none of it. On CUDA the marks are events on the stream, so a span is the
device's time and not that of the host, which only queues.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, ParamSpec, Protocol, TypeVar

import msgspec
import torch

from chitu_like.bench.result_files import write_text
from chitu_like.core.batch import ScheduledBatch
from chitu_like.worker.model_runner import ModelRunner
from chitu_like.worker.pending_step import PendingStep
from chitu_like.worker.pipeline import LinkedStage

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Mark = TypeVar("Mark")


class Span(msgspec.Struct, frozen=True, array_like=True):
    """A rank at work.

    Attributes:
        step_id, num_reqs, num_tokens: of the batch.
        start_s, end_s: `time.monotonic` of the node.
    """

    step_id: int
    num_reqs: int
    num_tokens: int
    start_s: float
    end_s: float


class RankTrace(msgspec.Struct, frozen=True):
    """All spans of a rank, by time.

    Attributes:
        rank: in the world.
        pp_rank, tp_rank: its seat.
    """

    rank: int
    pp_rank: int
    tp_rank: int
    spans: list[Span]


class _Clock(Protocol[Mark]):
    """Marks moments of the device, and says later when they were."""

    def mark(self) -> Mark: ...

    def seconds(self, mark: Mark) -> float: ...


class _HostClock:
    """The CPU's moments are the host's."""

    def mark(self) -> float:
        return time.monotonic()

    def seconds(self, mark: float) -> float:
        return mark


class _CudaClock:
    """Events on the current stream, related to the host's clock once at the start."""

    def __init__(self) -> None:
        torch.cuda.synchronize()
        self._base = self.mark()
        torch.cuda.synchronize()
        self._base_s = time.monotonic()

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def seconds(self, mark: torch.cuda.Event) -> float:
        mark.synchronize()
        return self._base_s + float(self._base.elapsed_time(mark)) / 1e3


class _Marks(Generic[Mark]):
    """Spans of one rank while it runs."""

    def __init__(self, clock: _Clock[Mark]) -> None:
        self._clock = clock
        self._batch: ScheduledBatch | None = None
        self._start: Mark | None = None
        self._marked: list[tuple[ScheduledBatch, Mark, Mark]] = []

    def start(self, batch: ScheduledBatch) -> None:
        self._batch, self._start = batch, self._clock.mark()

    def pause(self) -> None:
        if self._batch is not None and self._start is not None:
            self._marked.append((self._batch, self._start, self._clock.mark()))
            self._start = None

    def go_on(self) -> None:
        self._start = self._clock.mark()

    def spans(self) -> list[Span]:
        return [
            Span(
                batch.step_id,
                batch.num_reqs,
                len(batch.token_ids),
                self._clock.seconds(start),
                self._clock.seconds(end),
            )
            for batch, start, end in self._marked
        ]


class StageRecorder:
    """Notes what the ModelRunner of this process does, from `install` on."""

    def __init__(self) -> None:
        self._marks: _Marks[float] | _Marks[torch.cuda.Event] | None = None

    def install(self) -> None:
        """Wrap the runner's launch and its waits, for the rest of the process.

        A benchmark alone may do so: what serves pays for no tracing.
        """
        setattr(ModelRunner, "launch", self._launching(ModelRunner.launch))  # noqa: B010
        for name in ("await_tokens", "receive"):
            setattr(LinkedStage, name, self._waiting(getattr(LinkedStage, name)))

    def spans(self) -> list[Span]:
        """All of them by time; waits for the device."""
        return self._marks.spans() if self._marks is not None else []

    def _launching(
        self, launch: Callable[[ModelRunner, ScheduledBatch], PendingStep]
    ) -> Callable[[ModelRunner, ScheduledBatch], PendingStep]:
        @functools.wraps(launch)
        def traced(runner: ModelRunner, batch: ScheduledBatch) -> PendingStep:
            if self._marks is None:
                is_cuda = runner.device.type == "cuda"
                self._marks = _Marks(_CudaClock()) if is_cuda else _Marks(_HostClock())
            self._marks.start(batch)
            pending = launch(runner, batch)
            self._marks.pause()
            return pending

        return traced

    def _waiting(self, wait: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        @functools.wraps(wait)
        def traced(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            if self._marks is None:
                return wait(*args, **kwargs)
            self._marks.pause()
            result = wait(*args, **kwargs)
            self._marks.go_on()
            return result

        return traced


def busy_share(spans: Sequence[Span], start_s: float, end_s: float) -> float:
    """Share of the time from start_s to end_s in which a rank was at work, 0 to 1."""
    inside = (min(span.end_s, end_s) - max(span.start_s, start_s) for span in spans)
    return sum(max(0.0, seconds) for seconds in inside) / (end_s - start_s)


def all_busy_share(traces: Sequence[RankTrace], start_s: float, end_s: float) -> float:
    """Share of that time in which every rank was at work."""
    edges = [
        (min(max(moment, start_s), end_s), change)
        for trace in traces
        for span in trace.spans
        for moment, change in ((span.start_s, 1), (span.end_s, -1))
    ]
    together, num_busy, since = 0.0, 0, start_s
    for moment, change in sorted(edges):
        if num_busy == len(traces):
            together += moment - since
        num_busy, since = num_busy + change, moment
    return together / (end_s - start_s)


def write_chrome_trace(path: Path, traces: Sequence[RankTrace]) -> None:
    """A file for chrome://tracing or ui.perfetto.dev: a line a rank, a bar a span.

    Raises: ConfigError if the file cannot be written.
    """
    names = [
        {
            "name": "thread_name",
            "ph": "M",
            "pid": 0,
            "tid": trace.rank,
            "args": {"name": f"stage {trace.pp_rank}, tp {trace.tp_rank}, rank {trace.rank}"},
        }
        for trace in traces
    ]
    origin_s = min((span.start_s for trace in traces for span in trace.spans), default=0.0)
    bars = [
        {
            "name": f"step {span.step_id}",
            "ph": "X",
            "pid": 0,
            "tid": trace.rank,
            "ts": (span.start_s - origin_s) * 1e6,
            "dur": (span.end_s - span.start_s) * 1e6,
            "args": {"requests": span.num_reqs, "tokens": span.num_tokens},
        }
        for trace in traces
        for span in trace.spans
    ]
    write_text(path, msgspec.json.encode({"traceEvents": [*names, *bars]}).decode() + "\n")
