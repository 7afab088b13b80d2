"""What a load generator is to send: when, how long, and with which tokens."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from chitu_like.bench.random_prompts import random_prompt
from chitu_like.bench.traces import TraceRow

HASH_BLOCK = 512  # tokens a Mooncake hash id stands for
MAX_REQUESTS = 10_000_000


@dataclass(frozen=True, kw_only=True)
class PlannedRequest:
    """One request to be sent.

    Attributes:
        index: its place in the plan.
        arrival_s: seconds after the start.
        input_len, output_len: tokens.
        hash_ids: names of 512-token blocks that other requests may share.
    """

    index: int
    arrival_s: float
    input_len: int
    output_len: int
    hash_ids: tuple[int, ...] = ()


def plan_requests(
    arrivals: Iterable[float],
    lengths: Iterable[tuple[int, int]],
    *,
    count: int | None,
    duration_s: float | None,
) -> list[PlannedRequest]:
    """Join arrivals and lengths until one of them ends, or count or duration is reached."""
    pairs: Iterator[tuple[float, tuple[int, int]]] = zip(arrivals, lengths, strict=False)
    if duration_s is not None:
        pairs = itertools.takewhile(lambda pair: pair[0] < duration_s, pairs)
    return [
        PlannedRequest(index=index, arrival_s=arrival_s, input_len=lens[0], output_len=lens[1])
        for index, (arrival_s, lens) in enumerate(
            itertools.islice(pairs, MAX_REQUESTS if count is None else count)
        )
    ]


def plan_trace(
    rows: Sequence[TraceRow], *, rate: float | None, count: int | None, duration_s: float | None
) -> list[PlannedRequest]:
    """A trace as it was recorded; with a rate, stretched evenly to that many requests/s.

    The mean rate of n requests is (n - 1) gaps over the time from the first to the last.
    """
    stretch = 1.0
    span_s = rows[-1].arrival_s
    if rate is not None and span_s > 0:
        stretch = (len(rows) - 1) / rate / span_s
    chosen = [
        PlannedRequest(
            index=index,
            arrival_s=row.arrival_s * stretch,
            input_len=row.input_len,
            output_len=row.output_len,
            hash_ids=row.hash_ids,
        )
        for index, row in enumerate(rows[:count])
    ]
    return [request for request in chosen if duration_s is None or request.arrival_s < duration_s]


def prompt_of(request: PlannedRequest, seed: int, vocab_size: int) -> list[int]:
    """Token ids of a request: exactly input_len of them, the same for the same seed.

    Blocks with the same hash id have the same tokens in every request; everything else is random.
    """
    prompt: list[int] = []
    for hash_id in request.hash_ids[: -(-request.input_len // HASH_BLOCK)]:
        prompt += random_prompt(random.Random(f"{seed} {hash_id}"), HASH_BLOCK, vocab_size)
    missing = request.input_len - len(prompt)
    rng = random.Random(f"{seed} request {request.index}")
    return prompt[: request.input_len] + random_prompt(rng, max(missing, 0), vocab_size)
