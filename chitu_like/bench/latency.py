"""From records to figures: TTFT, TPOT, ITL, E2E, throughput, goodput."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from chitu_like.bench.client import StreamRecord
from chitu_like.simulator.results import Slo
from chitu_like.simulator.workload import PlannedRequest

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean and percentiles of a figure, in its unit; linear between neighbours, as numpy does."""

    mean: float
    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """The spread of at least one value; None of none."""
        if not values:
            return None
        p50, p90, p99 = np.percentile(values, PERCENTILES).tolist()
        return cls(mean=float(np.mean(values)), p50=p50, p90=p90, p99=p99)


def is_met(slo: Slo, record: StreamRecord) -> bool:
    """Whether a request was answered well enough."""
    if record.error is not None:
        return False
    ttft_s, tpot_s = ttft_of(record), tpot_of(record)
    is_early = slo.ttft_s is None or (ttft_s is not None and ttft_s <= slo.ttft_s)
    return is_early and (slo.tpot_s is None or tpot_s is None or tpot_s <= slo.tpot_s)


@dataclass(frozen=True, kw_only=True)
class ServingSummary:
    """The figures of a run. Failed requests count in num_failed and errors, and nowhere else.

    Attributes:
        num_requests, num_failed: sent, and of them not answered to the end.
        num_short: answered with fewer tokens than were asked for (the server stops at end-of-text).
        errors: each kind and how often.
        elapsed_s: from the first request sent to the last answer.
        requests_per_s, input_tokens_per_s, output_tokens_per_s: of answered requests.
        ttft_s: sent to first token, connection included.
        tpot_s: (last token - first token) / (tokens - 1), per request.
        itl_s: between events with tokens that follow each other, over all requests.
        e2e_s: sent to the end of the answer.
        late_s: sent after it was due; large where this process or max_concurrency holds it back.
        goodput: good requests/s; None without an SLO.
        slo_attainment: share of the sent requests that are good; None without an SLO.
    """

    num_requests: int
    num_failed: int
    num_short: int
    errors: dict[str, int]
    num_input_tokens: int
    num_output_tokens: int
    elapsed_s: float
    requests_per_s: float
    input_tokens_per_s: float
    output_tokens_per_s: float
    ttft_s: Spread | None
    tpot_s: Spread | None
    itl_s: Spread | None
    e2e_s: Spread | None
    late_s: Spread | None
    goodput: float | None
    slo_attainment: float | None


@dataclass(frozen=True, kw_only=True)
class SentRequest:
    """A request, when it was due, and what became of it."""

    request: PlannedRequest
    due_s: float
    record: StreamRecord

    @property
    def num_input_tokens(self) -> int:
        """As the server counted, else as was planned."""
        counted = self.record.num_input_tokens
        return self.request.input_len if counted is None else counted


def summarize(sent: Sequence[SentRequest], elapsed_s: float, slo: Slo | None) -> ServingSummary:
    """Take the figures of a run.

    Args:
        sent: every request of the run.
        elapsed_s: of the run; above 0.
        slo: what makes a request good; None: no goodput.
    """
    answered = [item for item in sent if item.record.error is None]
    records = [item.record for item in answered]
    num_input = sum(item.num_input_tokens for item in answered)
    num_output = sum(record.num_output_tokens for record in records)
    num_good = None if slo is None else sum(is_met(slo, item.record) for item in sent)
    return ServingSummary(
        num_requests=len(sent),
        num_failed=len(sent) - len(answered),
        num_short=sum(item.record.num_output_tokens < item.request.output_len for item in answered),
        errors=dict(Counter(i.record.error for i in sent if i.record.error is not None)),
        num_input_tokens=num_input,
        num_output_tokens=num_output,
        elapsed_s=elapsed_s,
        requests_per_s=len(answered) / elapsed_s,
        input_tokens_per_s=num_input / elapsed_s,
        output_tokens_per_s=num_output / elapsed_s,
        ttft_s=_spread_of(map(ttft_of, records)),
        tpot_s=_spread_of(map(tpot_of, records)),
        itl_s=Spread.of([gap for record in records for gap in gaps_of(record)]),
        e2e_s=Spread.of([record.end_s - record.start_s for record in records]),
        late_s=Spread.of([max(item.record.start_s - item.due_s, 0.0) for item in sent]),
        goodput=None if num_good is None else num_good / elapsed_s,
        slo_attainment=None if num_good is None or not sent else num_good / len(sent),
    )


def ttft_of(record: StreamRecord) -> float | None:
    """Seconds to the first token; None if none came."""
    return record.token_times[0] - record.start_s if record.token_times else None


def tpot_of(record: StreamRecord) -> float | None:
    """Seconds per token after the first; None with fewer than two."""
    if record.num_output_tokens < 2 or not record.token_times:
        return None
    return (record.token_times[-1] - record.token_times[0]) / (record.num_output_tokens - 1)


def gaps_of(record: StreamRecord) -> list[float]:
    """Seconds between events that follow each other."""
    times = record.token_times
    return [later - earlier for earlier, later in itertools.pairwise(times)]


def _spread_of(values: Iterable[float | None]) -> Spread | None:
    return Spread.of([value for value in values if value is not None])
