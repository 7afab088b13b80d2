"""Share of the time in which the GPU does nothing while the engine decodes, and between which kernels.

The real engine runs requests of equal length. Once all of them decode, steps are timed undisturbed;
then torch's profiler notes every kernel of some more. A profiler slows kernels and launches a little,
so two shares are told: that of the trace, and the kernels' time of the trace against the undisturbed
step. The truth lies between. The step is the median one; the longest shows what a mean would hide: one
round of Python's garbage collector over all that torch loaded takes a tenth of a second.
"""

from __future__ import annotations

import itertools
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile, schedule

from chitu_like.bench.busy_intervals import (
    Activity,
    Span,
    activity,
    busiest,
    device_spans,
    short_name,
)
from chitu_like.bench.engine_run import NO_PREFIX_CACHE, EngineRun, with_defaults
from chitu_like.bench.parallel import MIN_CHUNK
from chitu_like.bench.provenance import provenance
from chitu_like.bench.random_prompts import random_prompts
from chitu_like.bench.result_files import write_json
from chitu_like.cli.command_line import Parser, positive_int, positive_ints
from chitu_like.config.load import load_config
from chitu_like.core.ending import DONE
from chitu_like.core.errors import PeerError, UnsupportedError
from chitu_like.core.sampling_params import SamplingParams
from chitu_like.llm import LLM
from chitu_like.worker.device import device_facts

WARMUP_STEPS = 8
"""Under the profiler before it notes anything: its own start takes long."""
SETTLE_STEPS = 4
"""Of decodes alone that are not timed: a batch in flight beside the last prefill, first replays."""
TABLE_WIDTH = 160
NAME_WIDTH = 44


class StepProfiler(Protocol):
    """Notes what the device does in some steps."""

    def start(self) -> None:
        """Begin to warm up."""
        ...

    def step(self) -> None:
        """A step is over."""
        ...

    def stop(self) -> list[Span]:
        """The work of the steps that were noted, by start."""
        ...


@dataclass(frozen=True, kw_only=True)
class IdleRow:
    """What decoding of one batch size does to the device.

    Attributes:
        batch_size, context: of the requests.
        step_ms: of a decode step without the profiler, the median.
        longest_step_ms: of those that step_ms is the median of.
        busy_ms: of it, in which something runs on the device.
        kernels_per_step: pieces of work.
        traced_idle_share: in the trace.
        clocked_idle_share: busy_ms against step_ms; below 0 where the profiler slows kernels.
        activity: the trace in sums.
        kernels: (name, count, total microseconds), the longest first.
    """

    batch_size: int
    context: int
    step_ms: float
    longest_step_ms: float
    busy_ms: float
    kernels_per_step: float
    traced_idle_share: float
    clocked_idle_share: float
    activity: Activity
    kernels: list[tuple[str, int, float]]


def run(prog: str, arguments: Sequence[str]) -> int:
    """Profile each batch size, print tables, write JSON if asked to.

    Raises: UnsupportedError without a CUDA device.
    """
    options = _parser(prog).parse_intermixed_args(arguments)
    overrides = with_defaults(options.overrides, NO_PREFIX_CACHE)
    facts = device_facts(load_config(overrides).infer.device)
    if facts.device != "cuda":
        raise UnsupportedError(f"{prog} looks at a CUDA device, and torch sees none here")
    console = Console(soft_wrap=True, highlight=False, width=TABLE_WIDTH)
    rows = []
    with LLM(*overrides) as llm:
        rng = random.Random(0)
        for batch in options.batches:
            prompts = random_prompts(rng, [options.context] * batch, llm.info.vocab_size)
            profiler = TorchProfiler(options.steps)
            row = measure_idle(llm, prompts, num_steps=options.steps, profiler=profiler)
            console.print(_headline(row))
            for table in tables(row, options.top):
                console.print(table)
            rows.append(row)
    if options.json is not None:
        origin = asdict(provenance(prog, arguments, facts))
        write_json(
            options.json, {"benchmark": "gpu_idle", **origin, "rows": [asdict(r) for r in rows]}
        )
    return DONE


def measure_idle(
    llm: LLM,
    prompts: Sequence[Sequence[int]],
    *,
    num_steps: int,
    profiler: StepProfiler,
    clock: Callable[[], float] = time.perf_counter,
) -> IdleRow:
    """Run prompts of one length at once until enough decode steps were timed and noted.

    Args:
        llm: without prefix cache.
        prompts: of equal length.
        num_steps: to time, and again to note.
        profiler: notes num_steps steps after WARMUP_STEPS.
        clock: seconds that never go back.

    Raises:
        CapacityError: they do not fit at once.
        PeerError: they did not decode together.
    """
    batch_size, context = len(prompts), len(prompts[0])
    slack = batch_size * context // MIN_CHUNK + 2 * num_steps + SETTLE_STEPS + WARMUP_STEPS + 1
    EngineRun(llm).check_room(batch_size, context + 1 + slack)
    watch = _Watch(batch_size, llm.stats().num_output_tokens, profiler, num_steps, clock)
    params = SamplingParams(temperature=0.0, max_tokens=1 + slack, ignore_eos=True)
    for _ in llm.generate_each(
        prompts, params, stop_when=lambda: watch.is_over(llm.stats().num_output_tokens)
    ):
        pass
    timed_s, noted_s = watch.timed_s(), watch.noted_s()
    step_ms = statistics.median(timed_s) * 1e3
    found = activity(watch.spans)
    # The trace's ends cut steps in two, so what a step takes comes of the clock and of shares.
    noted_step_s = statistics.fmean(noted_s)
    num_traced = found.elapsed_us / 1e6 / noted_step_s
    busy_ms = (1.0 - found.idle_share) * noted_step_s * 1e3
    return IdleRow(
        batch_size=batch_size,
        context=context,
        step_ms=step_ms,
        longest_step_ms=max(timed_s) * 1e3,
        busy_ms=busy_ms,
        kernels_per_step=found.num_spans / num_traced if num_traced else 0.0,
        traced_idle_share=found.idle_share,
        clocked_idle_share=1.0 - busy_ms / step_ms,
        activity=found,
        kernels=busiest(watch.spans),
    )


class TorchProfiler:
    """torch's profiler over the CUDA device alone.

    Args:
        num_steps: to note after WARMUP_STEPS.
    """

    def __init__(self, num_steps: int) -> None:
        self._profile = profile(
            activities=[ProfilerActivity.CUDA],
            schedule=schedule(wait=0, warmup=WARMUP_STEPS, active=num_steps, repeat=1),
            on_trace_ready=self._read,
        )
        self._spans: list[Span] = []

    def start(self) -> None:
        """See StepProfiler."""
        self._profile.start()

    def step(self) -> None:
        """See StepProfiler."""
        self._profile.step()

    def stop(self) -> list[Span]:
        """See StepProfiler."""
        self._profile.stop()
        return self._spans

    def _read(self, traced: profile) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            traced.export_chrome_trace(str(path))
            self._spans = device_spans(json.loads(path.read_text())["traceEvents"])


class _Watch:
    """Called after each engine step: first takes the time of steps, then lets the profiler note some.

    Args:
        num_requests: that run; a step that brings each of them a token is one of decodes alone.
        num_tokens: the count of output tokens now.
        profiler: notes num_steps steps after WARMUP_STEPS.
        num_steps: to time, and again to note.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        num_requests: int,
        num_tokens: int,
        profiler: StepProfiler,
        num_steps: int,
        clock: Callable[[], float],
    ) -> None:
        self._num_requests, self._num_tokens = num_requests, num_tokens
        self._profiler, self._num_steps, self._clock = profiler, num_steps, clock
        self._ends_s: list[float] = []  # of the steps of decodes alone
        self._last_timed = SETTLE_STEPS + num_steps
        self._last = self._last_timed + WARMUP_STEPS + num_steps
        self.spans: list[Span] = []

    def is_over(self, num_tokens: int) -> bool:
        """Take the count of tokens after a step; True once the profiler has noted enough."""
        now_s = self._clock()
        news, self._num_tokens = num_tokens - self._num_tokens, num_tokens
        if news != self._num_requests:
            return False
        self._ends_s.append(now_s)
        step = len(self._ends_s) - 1  # the first one may have prefilled the last prompt
        if step == self._last_timed:
            self._profiler.start()
        elif step > self._last_timed:
            self._profiler.step()
        if step == self._last:
            self.spans = self._profiler.stop()
        return step == self._last

    def timed_s(self) -> list[float]:
        """Seconds of each step without the profiler. Raises: PeerError where there were too few."""
        return self._seconds(SETTLE_STEPS, self._last_timed)

    def noted_s(self) -> list[float]:
        """Seconds of each step that the profiler noted. Raises: PeerError where there were too few."""
        return self._seconds(self._last - self._num_steps, self._last)

    def _seconds(self, before: int, last: int) -> list[float]:
        ends_s = self._ends_s[before : last + 1]
        if len(ends_s) <= last - before:
            raise PeerError(f"{self._num_requests} requests did not decode together for long")
        return [end_s - begin_s for begin_s, end_s in itertools.pairwise(ends_s)]


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog,
        "Profile decode steps of the engine on a CUDA device: the share of time in which nothing "
        "runs there, the largest gaps by the kernels around them, and the longest kernels.",
        [f"{prog} --batches 1,256 models=qwen3-0.6b models.load_format=dummy"],
    )
    parser.add_argument("--batches", type=positive_ints, default=[1, 256], metavar="B,...")
    parser.add_argument(
        "--context", type=positive_int, default=1024, metavar="L", help="of prompts"
    )
    parser.add_argument("--steps", type=positive_int, default=50, metavar="N", help="to profile")
    parser.add_argument("--top", type=positive_int, default=8, metavar="N", help="rows of a table")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    parser.add_overrides()
    return parser


def _headline(row: IdleRow) -> str:
    return (
        f"batch {row.batch_size} at {row.context}: step {row.step_ms:.3f} ms (the longest "
        f"{row.longest_step_ms:.3f}), device busy {row.busy_ms:.3f} ms in {row.kernels_per_step:.0f} "
        f"kernels; idle {row.traced_idle_share:.1%} in the trace, {row.clocked_idle_share:.1%} by "
        "the clock"
    )


def tables(row: IdleRow, top: int) -> list[Table]:
    """The kinds of gaps, and the kernels, that took longest, `top` of each."""
    gaps = Table()
    for name in ("gap after", "and before"):
        gaps.add_column(name, no_wrap=True)
    for name in ("count", "us each", "longest us", "of time"):
        gaps.add_column(name, justify="right")
    for gap in row.activity.gaps[:top]:
        gaps.add_row(
            short_name(gap.before)[:NAME_WIDTH],
            short_name(gap.after)[:NAME_WIDTH],
            str(gap.count),
            f"{gap.total_us / gap.count:.1f}",
            f"{gap.longest_us:.1f}",
            f"{gap.total_us / row.activity.elapsed_us:.1%}",
        )
    kernels = Table()
    kernels.add_column("kernel", no_wrap=True)
    for name in ("count", "us each", "of busy time"):
        kernels.add_column(name, justify="right")
    for name, count, total_us in row.kernels[:top]:
        share = f"{total_us / row.activity.busy_us:.1%}"
        kernels.add_row(short_name(name)[:NAME_WIDTH], str(count), f"{total_us / count:.1f}", share)
    return [gaps, kernels]
