"""The page that Prometheus scrapes."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Histogram, generate_latest

from chitu_like.server.metrics import FAST_S, Metrics


def test_the_histogram_of_tokens_reads_like_prometheus_own() -> None:
    seconds = [0.0, 0.0004, 0.001, 0.0011, 0.3, 5.0, 7.5]
    registry = CollectorRegistry()
    own = Histogram(
        "vllm:inter_token_latency_seconds",
        "Time between two outputs of a request",
        ["model_name"],
        buckets=FAST_S,
        registry=registry,
    ).labels("m")
    metrics = Metrics("m", [])
    for value in seconds:
        own.observe(value)
        metrics.next_tokens(value)
    page = metrics.render().decode().splitlines()
    ours = [line for line in page if "inter_token_latency" in line]
    theirs = generate_latest(registry).decode().splitlines()
    assert ours == [line for line in theirs if "_created" not in line]
    assert 'vllm:inter_token_latency_seconds_bucket{le="0.001",model_name="m"} 3.0' in ours
