from __future__ import annotations

import random

import numpy as np
import pytest

from chitu_like.bench.client import StreamRecord
from chitu_like.bench.latency import SentRequest, summarize
from chitu_like.simulator.results import Slo
from chitu_like.simulator.workload import PlannedRequest


def sent(
    start_s: float, *token_times: float, error: str | None = None, due_s: float | None = None
) -> SentRequest:
    record = StreamRecord(
        start_s=start_s,
        token_times=list(token_times),
        end_s=token_times[-1] if token_times else start_s,
        num_output_tokens=len(token_times),
        error=error,
    )
    planned = PlannedRequest(index=0, arrival_s=0.0, input_len=10, output_len=3)
    return SentRequest(request=planned, due_s=start_s if due_s is None else due_s, record=record)


def test_every_spread_is_what_numpy_says() -> None:
    rng = random.Random(3)
    runs = []
    for _ in range(57):
        start_s = rng.uniform(0, 5)
        first_s = start_s + rng.uniform(0.01, 1)
        second_s = first_s + rng.uniform(0.001, 0.1)
        runs.append((start_s, first_s, second_s, second_s + rng.uniform(0.001, 0.1)))
    summary = summarize([sent(*run) for run in runs], 10.0, None)
    array = np.array(runs)
    expected = {
        "ttft_s": array[:, 1] - array[:, 0],
        "tpot_s": (array[:, 3] - array[:, 1]) / 2,
        "itl_s": np.diff(array[:, 1:], axis=1).ravel(),
        "e2e_s": array[:, 3] - array[:, 0],
    }
    for name, values in expected.items():
        spread = getattr(summary, name)
        assert spread.mean == pytest.approx(values.mean())
        for percentile in (50, 90, 99):
            found = getattr(spread, f"p{percentile}")
            assert found == pytest.approx(np.percentile(values, percentile))


def test_throughput_counts_what_was_answered() -> None:
    runs = [sent(0.0, 1.0, 2.0, 3.0), sent(0.0, 1.0, 2.0), sent(0.0, 1.0, error="cut")]
    summary = summarize(runs, 4.0, None)
    assert (summary.num_requests, summary.num_failed, summary.num_short) == (3, 1, 1)
    assert summary.errors == {"cut": 1}
    assert (summary.num_input_tokens, summary.num_output_tokens) == (20, 5)
    assert summary.requests_per_s == 0.5
    assert summary.input_tokens_per_s == 5.0
    assert summary.output_tokens_per_s == 1.25
    assert summary.goodput is None


def test_goodput_wants_both_bounds_kept_and_no_failure() -> None:
    good = sent(0.0, 0.5, 0.6, 0.7)
    late = sent(0.0, 0.9, 1.0, 1.1)
    slow = sent(0.0, 0.5, 0.9, 1.3)
    failed = sent(0.0, 0.1, 0.2, 0.3, error="cut")
    runs = [good, late, slow, failed]
    assert summarize(runs, 2.0, Slo(ttft_s=0.6, tpot_s=0.2)).goodput == 0.5
    assert summarize(runs, 2.0, Slo(ttft_s=0.6, tpot_s=0.2)).slo_attainment == 0.25
    assert summarize(runs, 2.0, Slo(ttft_s=0.6)).slo_attainment == 0.5
    assert summarize(runs, 2.0, Slo(tpot_s=0.2)).slo_attainment == 0.5


def test_a_request_of_one_token_has_no_tpot() -> None:
    summary = summarize([sent(0.0, 1.0)], 1.0, Slo(tpot_s=0.001))
    assert summary.tpot_s is None
    assert summary.itl_s is None
    assert summary.slo_attainment == 1.0


def test_lateness_is_measured_against_the_plan() -> None:
    summary = summarize([sent(2.0, 3.0, due_s=0.5), sent(0.9, 3.0, due_s=1.0)], 1.0, None)
    assert summary.late_s is not None
    assert summary.late_s.mean == 0.75


def test_nothing_answered_gives_no_figures() -> None:
    summary = summarize([sent(0.0, error="refused")], 1.0, None)
    assert summary.ttft_s is None
    assert summary.requests_per_s == 0.0
