"""Prometheus metrics under the names that dashboards written for vLLM read."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from chitu_like.core.output import RequestTimes
from chitu_like.engine.messages import EngineStats
from chitu_like.router.instance import Instance

FAST_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2.5, 5)
"""Bounds for one token's time."""
SLOW_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 900)
"""Bounds for a phase of a request or the whole of it."""
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)

GAUGES = (
    ("num_requests_running", "Requests in the running batch", "num_running"),
    ("num_requests_waiting", "Requests that wait for room", "num_waiting"),
    ("kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1", "kv_usage"),
)
COUNTERS = (
    ("num_preemptions", "Requests that lost their blocks for a while", "num_preemptions"),
    ("prompt_tokens", "Prompt tokens taken in", "num_prompt_tokens"),
    ("generation_tokens", "Tokens generated", "num_output_tokens"),
    ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache", "prefix_cache_queries"),
    ("prefix_cache_hits", "Prompt tokens found in the prefix cache", "prefix_cache_hits"),
)


@dataclass(frozen=True, kw_only=True)
class FinishedRequest:
    """What is known of a request when it ends, for metrics and the log.

    Attributes:
        finish_reason: stop, length, abort or error.
        ttft_s: from the call's arrival to the first token; None without one.
        e2e_s: from the call's arrival to the end.
        tpot_s: mean time of each token after the first; None with fewer than two.
        times: the engine's own account, where it gave one.
    """

    request_id: str
    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int
    finish_reason: str
    ttft_s: float | None
    e2e_s: float
    tpot_s: float | None
    times: RequestTimes | None

    def log_line(self) -> str:
        """The one line about it; '-' for what is not known."""
        times = self.times
        queue_s, prefill_s, decode_s = (
            (None, None, None)
            if times is None
            else (times.queue_s, times.prefill_s, times.decode_s)
        )
        return (
            f"{self.request_id} {self.finish_reason}: "
            f"prompt={self.num_prompt_tokens} output={self.num_output_tokens} "
            f"cached={self.num_cached_tokens} "
            f"queue_ms={_ms(queue_s)} prefill_ms={_ms(prefill_s)} "
            f"decode_ms={_ms(decode_s)} ttft_ms={_ms(self.ttft_s)} "
            f"e2e_ms={_ms(self.e2e_s)}"
        )


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.1f}"


class Metrics:
    """All series of one service, in a registry of their own.

    Args:
        model_name: the label every series carries.
        instances: read at each scrape; what an engine counts carries its number as `engine`.
    """

    def __init__(self, model_name: str, instances: Sequence[Instance]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_InstanceCollector(model_name, instances))
        self._model_name = model_name
        self._ttft = self._histogram("time_to_first_token_seconds", "Arrival to first token")
        self._tpot = self._histogram(
            "time_per_output_token_seconds", "Mean time of a token after the first", FAST_S
        )
        self._request_tpot = self._histogram(
            "request_time_per_output_token_seconds", "The same under its newer name", FAST_S
        )
        self._itl = _Tally(
            "inter_token_latency_seconds", "Time between two outputs of a request", model_name
        )
        self._registry.register(self._itl)
        self._e2e = self._histogram("e2e_request_latency_seconds", "Arrival to end")
        self._queue = self._histogram("request_queue_time_seconds", "Waiting for the first step")
        self._prefill = self._histogram("request_prefill_time_seconds", "First step to first token")
        self._decode = self._histogram("request_decode_time_seconds", "First token to end")
        self._inference = self._histogram("request_inference_time_seconds", "First step to end")
        self._prompt = self._histogram("request_prompt_tokens", "Prompt lengths", TOKENS)
        self._output = self._histogram("request_generation_tokens", "Output lengths", TOKENS)
        self._iteration = self._histogram("iteration_tokens_total", "Tokens of a step", TOKENS)
        self._success = Counter(
            "vllm:request_success",
            "Finished requests by the reason of their end",
            ["model_name", "finished_reason"],
            registry=self._registry,
        )
        for reason in ("stop", "length", "abort", "error"):
            self._success.labels(model_name, reason)

    def stepped(self, instance: Instance, before: EngineStats, after: EngineStats) -> None:
        """Take the totals around a step of one instance."""
        if after.num_steps > before.num_steps:
            num_tokens = (
                after.num_prompt_tokens
                - before.num_prompt_tokens
                + after.num_output_tokens
                - before.num_output_tokens
            )
            self._iteration.observe(max(num_tokens, 0))

    def first_token(self, ttft_s: float) -> None:
        """A request got its first token."""
        self._ttft.observe(ttft_s)

    def next_tokens(self, itl_s: float) -> None:
        """A request got more tokens, `itl_s` after the last ones."""
        self._itl.add(itl_s)

    def finished(self, request: FinishedRequest) -> None:
        """A request ended."""
        self._success.labels(self._model_name, request.finish_reason).inc()
        self._prompt.observe(request.num_prompt_tokens)
        self._output.observe(request.num_output_tokens)
        self._e2e.observe(request.e2e_s)
        if request.tpot_s is not None:
            self._tpot.observe(request.tpot_s)
            self._request_tpot.observe(request.tpot_s)
        if (times := request.times) is not None:
            self._queue.observe(times.queue_s)
            self._prefill.observe(times.prefill_s)
            self._decode.observe(times.decode_s)
            self._inference.observe(times.prefill_s + times.decode_s)

    def render(self) -> bytes:
        """The page Prometheus scrapes."""
        return generate_latest(self._registry)

    def _histogram(self, name: str, meaning: str, bounds: tuple[float, ...] = SLOW_S) -> Histogram:
        family = Histogram(
            f"vllm:{name}", meaning, ["model_name"], buckets=bounds, registry=self._registry
        )
        return family.labels(self._model_name)


class _Tally(Collector):
    """A histogram that costs little to feed, as every token of every request does.

    prometheus_client's own takes two locks and looks at its buckets one by one; it was a fifth of all
    that the front end does for a token. Belongs to one event loop, so nothing needs a lock.

    Args:
        name, meaning: of the series.
        model_name: the label it carries.
    """

    def __init__(self, name: str, meaning: str, model_name: str) -> None:
        self._name = name
        self._meaning = meaning
        self._model_name = model_name
        self._counts = [0] * (len(FAST_S) + 1)
        self._sum_s = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self._counts[bisect_left(FAST_S, seconds)] += 1
        self._sum_s += seconds

    def collect(self) -> Iterator[Metric]:
        """The family as it is now; a bucket counts what is at most its bound."""
        bounds = [*map(floatToGoString, FAST_S), "+Inf"]
        buckets = list(zip(bounds, map(float, accumulate(self._counts)), strict=True))
        family = HistogramMetricFamily(f"vllm:{self._name}", self._meaning, labels=["model_name"])
        family.add_metric([self._model_name], buckets, self._sum_s)
        yield family


class _InstanceCollector(Collector):
    """Reads the engines' stats at each scrape, so that nothing is counted twice."""

    def __init__(self, model_name: str, instances: Sequence[Instance]) -> None:
        self._model_name = model_name
        self._instances = instances

    def collect(self) -> Iterator[Metric]:
        """Yield how many serve, and the gauges and totals of each as they are now."""
        num_up = sum(instance.is_up for instance in self._instances)
        for name, meaning, value in (
            ("instances", "Instances at the start", len(self._instances)),
            ("instances_up", "Instances that serve", num_up),
        ):
            gauge = GaugeMetricFamily(f"chitu_like:{name}", meaning, labels=["model_name"])
            gauge.add_metric([self._model_name], value)
            yield gauge
        stats = [(str(i.number), dict(_fields_of(i.stats))) for i in self._instances]
        families = (
            *((GaugeMetricFamily, row) for row in GAUGES),
            *((CounterMetricFamily, row) for row in COUNTERS),
        )
        for kind, (name, meaning, field) in families:
            family = kind(f"vllm:{name}", meaning, labels=["engine", "model_name"])
            for number, values in stats:
                family.add_metric([number, self._model_name], values[field])
            yield family


def _fields_of(stats: EngineStats) -> Iterator[tuple[str, float]]:
    for name in stats.__struct_fields__:
        yield name, getattr(stats, name)
