"""What a simulation tells while it runs, kept in memory that does not grow with simulated time."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from chitu_like.simulator.clock import VirtualClock
from chitu_like.simulator.distribution import Distribution
from chitu_like.simulator.results import Results, Slo
from chitu_like.simulator.timeline import Timeline

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, kw_only=True, slots=True)
class FinishedRequest:
    """One answered request: a row of requests.csv.

    Attributes:
        index: its place in the workload.
        arrival_s, first_token_s, finished_s: seconds of the simulation.
        input_len, output_len: tokens; the context may end an answer before what was planned.
        num_cached_tokens: of the prompt, which the prefix cache spared.
        place: the instance that answered last, or the route.
    """

    index: int
    arrival_s: float
    first_token_s: float
    finished_s: float
    input_len: int
    output_len: int
    num_cached_tokens: int = 0
    place: str = ""

    @property
    def ttft_s(self) -> float:
        """Arrival to first token."""
        return self.first_token_s - self.arrival_s

    @property
    def tpot_s(self) -> float | None:
        """Seconds per token after the first; None with only one."""
        if self.output_len < 2:
            return None
        return (self.finished_s - self.first_token_s) / (self.output_len - 1)

    @property
    def e2e_s(self) -> float:
        """Arrival to last token."""
        return self.finished_s - self.arrival_s


@dataclass
class _Level:
    """Something that has a value at every time."""

    value: float = 0.0
    since_s: float = 0.0
    integral: float = 0.0
    most: float = 0.0


@dataclass
class _Use:
    """How long a node or a link was busy, and what it moved."""

    busy_s: float = 0.0
    num_bytes: float = 0.0


@dataclass
class _Latencies:
    ttft_s: Distribution = field(default_factory=Distribution)
    tpot_s: Distribution = field(default_factory=Distribution)
    e2e_s: Distribution = field(default_factory=Distribution)
    slo_scale: Distribution = field(default_factory=Distribution)


class Recorder:
    """Counts what happens in a window of simulated time; requests belong where they finish.

    Args:
        clock: of the simulation.
        slo: what makes a request good; None: no goodput.
        warmup_s: before the window opens.
        duration_s: how long it is open; inf: to the end.
        on_finished: told of every answered request, in the window or not (e.g. a RequestLog's).
    """

    def __init__(
        self,
        clock: VirtualClock,
        *,
        slo: Slo | None = None,
        warmup_s: float = 0.0,
        duration_s: float = math.inf,
        on_finished: Callable[[FinishedRequest], None] | None = None,
    ) -> None:
        """Start with nothing seen."""
        self._clock = clock
        self._slo = slo
        self._start_s, self._end_s = warmup_s, warmup_s + duration_s
        self._on_finished = on_finished
        self._counts: defaultdict[str, float] = defaultdict(float)
        self._levels: dict[str, _Level] = {}
        self._nodes: dict[str, _Use] = {}
        self._links: dict[str, _Use] = {}
        self._latencies = _Latencies()
        self._timeline = Timeline()

    # What simulators tell

    def count(self, name: str, number: float = 1) -> None:
        """Something happened now.

        Args:
            name: `arrived`, `refused`, `failed`, `prompt_tokens` (when a prompt is through),
                `output_tokens`, `preemptions`, or a name of the simulator's own.
            number: how often.
        """
        now_s = self._clock.now_s
        if self._start_s <= now_s < self._end_s:
            self._counts[name] += number
        self._timeline.add(name, now_s, number)

    def finished(self, request: FinishedRequest) -> None:
        """A request had its last token now."""
        self.count("finished")
        if self._on_finished is not None:
            self._on_finished(request)
        if not self._start_s <= self._clock.now_s < self._end_s:
            return
        self._counts["cached_tokens"] += request.num_cached_tokens
        self._counts["finished_input_tokens"] += request.input_len
        latencies, tpot_s = self._latencies, request.tpot_s
        latencies.ttft_s.add(request.ttft_s)
        latencies.e2e_s.add(request.e2e_s)
        if tpot_s is not None:
            latencies.tpot_s.add(tpot_s)
        if self._slo is not None:
            scale = self._slo.scale(request.ttft_s, tpot_s)
            latencies.slo_scale.add(scale)
            self._counts["good"] += scale <= 1
            self._counts["good_ttft"] += self._slo.scale(request.ttft_s, None) <= 1
            self._counts["good_tpot"] += self._slo.scale(0.0, tpot_s) <= 1

    def level(self, name: str, value: float) -> None:
        """Something has this value from now on.

        Args:
            name: `devices` (GPUs that are paid for), `NODE.running` and `NODE.waiting` (requests),
                `NODE.kv` (the share of a node's KV cache in use), or a name of the simulator's own.
            value: until the next call.
        """
        level = self._levels.get(name)
        if level is None:
            level = self._levels[name] = _Level(since_s=self._clock.now_s)
        if value != level.value:
            self._settle(name, level)
            level.value = value

    def busy(self, node: str, start_s: float, end_s: float) -> None:
        """A node has computed from one time to another; said when it is over."""
        self._use(self._nodes, node, start_s, end_s)

    def carries(self, link: str, start_s: float, end_s: float, num_bytes: float) -> None:
        """A link has moved bytes, evenly from one time to another; said when it is over."""
        use = self._use(self._links, link, start_s, end_s)
        if end_s > start_s:
            use.num_bytes += num_bytes * self._within(start_s, end_s) / (end_s - start_s)
        elif self._start_s <= end_s < self._end_s:
            use.num_bytes += num_bytes

    # What users ask

    def results(self) -> Results:
        """Everything so far; the simulation may go on."""
        for name, level in self._levels.items():
            self._settle(name, level)
        elapsed_s = max(0.0, min(self._clock.now_s, self._end_s) - self._start_s)
        latencies = vars(self._latencies)
        return Results(
            figures=self._figures(elapsed_s),
            nodes={name: self._node(name, elapsed_s) for name in self._node_names()},
            links={
                name: {
                    "utilisation": _ratio(use.busy_s, elapsed_s),
                    "bytes_per_s": _ratio(use.num_bytes, elapsed_s),
                }
                for name, use in self._links.items()
            },
            timeline=self._timeline.rows(self._clock.now_s),
            cdfs={name: spread.curve() for name, spread in latencies.items() if spread.count},
            slo=self._slo,
        )

    def _figures(self, elapsed_s: float) -> dict[str, float | None]:
        counts, latencies = self._counts, self._latencies
        num_prompt, num_output = counts["prompt_tokens"], counts["output_tokens"]
        num_ended = counts["finished"] + counts["refused"] + counts["failed"]
        figures: dict[str, float | None] = {
            "elapsed_s": elapsed_s,
            **{
                f"num_{name}": counts[name] for name in ("arrived", "finished", "refused", "failed")
            },
            "num_preemptions": counts["preemptions"],
            "requests_per_s": _ratio(counts["finished"], elapsed_s),
            "prompt_tokens_per_s": _ratio(num_prompt, elapsed_s),
            "decode_tokens_per_s": _ratio(num_output, elapsed_s),
            "total_tokens_per_s": _ratio(num_prompt + num_output, elapsed_s),
            "avg_prompt_latency_s": latencies.ttft_s.mean,
            "avg_decode_latency_s": latencies.tpot_s.mean,
            "avg_e2e_s": latencies.e2e_s.mean,
        }
        for name in ("ttft", "tpot", "e2e"):
            spread: Distribution = getattr(latencies, f"{name}_s")
            for percentile in PERCENTILES:
                figures[f"{name}_p{percentile}_s"] = spread.quantile(percentile / 100)
        if self._slo is not None:
            figures["slo_attainment"] = _ratio(counts["good"], num_ended)
            figures["ttft_attainment"] = _ratio(counts["good_ttft"], num_ended)
            figures["tpot_attainment"] = _ratio(counts["good_tpot"], num_ended)
            figures["goodput_per_s"] = _ratio(counts["good"], elapsed_s)
        figures["prefix_hit_share"] = _ratio(
            counts["cached_tokens"], counts["finished_input_tokens"]
        )
        if (devices := self._levels.get("devices")) is not None:
            figures["gpu_seconds"] = devices.integral
        for kind in ("running", "waiting"):
            found = [level for name, level in self._levels.items() if name.endswith(f".{kind}")]
            if found:
                figures[f"avg_{kind}"] = _ratio(sum(level.integral for level in found), elapsed_s)
        busy_s = sum(use.busy_s for use in self._nodes.values())
        figures["utilisation"] = _ratio(busy_s, elapsed_s * len(self._nodes))
        return figures

    def _node_names(self) -> list[str]:
        """Those that computed, and those with a KV cache: of a pipeline the instance as a whole."""
        with_kv = (name.removesuffix(".kv") for name in self._levels if name.endswith(".kv"))
        return sorted({*self._nodes, *with_kv})

    def _node(self, name: str, elapsed_s: float) -> dict[str, float | None]:
        found: dict[str, float | None] = {}
        if (use := self._nodes.get(name)) is not None:
            found["utilisation"] = _ratio(use.busy_s, elapsed_s)
        if (kv := self._levels.get(f"{name}.kv")) is not None:
            found |= {"kv_mean": _ratio(kv.integral, elapsed_s), "kv_most": kv.most}
        return found

    def _use(self, uses: dict[str, _Use], name: str, start_s: float, end_s: float) -> _Use:
        use = uses.get(name)
        if use is None:
            use = uses[name] = _Use()
        use.busy_s += self._within(start_s, end_s)
        self._timeline.hold(f"{name}.busy", start_s, end_s)
        return use

    def _settle(self, name: str, level: _Level) -> None:
        """Account for the time since the level changed last."""
        now_s = self._clock.now_s
        within_s = self._within(level.since_s, now_s)
        if within_s > 0:  # what it was before the window opened holds on into it
            level.integral += level.value * within_s
            level.most = max(level.most, level.value)
        self._timeline.hold(name, level.since_s, now_s, level.value)
        level.since_s = now_s

    def _within(self, start_s: float, end_s: float) -> float:
        """Seconds of a span that lie in the window."""
        return max(0.0, min(end_s, self._end_s) - max(start_s, self._start_s))


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None
