"""What is to be answered: when requests come, how long they are, and what their prompts share."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from chitu_like.core.errors import ConfigError

HASH_BLOCK = 512
"""Tokens that one of Mooncake's hash ids stands for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedRequest:
    """One request that is to come; what generates load sends it, what simulates lets it arrive.

    Attributes:
        index: its place in the plan.
        arrival_s: seconds after the start.
        input_len, output_len: tokens.
        hash_ids: names of its prompt's 512-token blocks: equal names, equal text. Else empty.
    """

    index: int = 0
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
) -> Iterator[PlannedRequest]:
    """Join arrivals and (input, output) lengths until one ends, or count or duration is reached."""
    for index, (arrival_s, (input_len, output_len)) in enumerate(
        itertools.islice(zip(arrivals, lengths, strict=False), count)
    ):
        if duration_s is not None and arrival_s >= duration_s:
            return
        yield PlannedRequest(
            index=index, arrival_s=arrival_s, input_len=input_len, output_len=output_len
        )


def drawn(lengths: Sequence[tuple[int, int]], rng: random.Random) -> Iterator[tuple[int, int]]:
    """Pairs of (input, output) tokens drawn from a pool, without end."""
    while True:
        yield lengths[rng.randrange(len(lengths))]


def at_rate(requests: Sequence[PlannedRequest], rate: float) -> Iterator[PlannedRequest]:
    """A trace stretched evenly to a mean of so many requests/s; one instant stays one instant.

    The mean rate of n requests is (n - 1) gaps over the time from the first to the last.
    """
    if not rate > 0:
        raise ConfigError(f"a trace at {rate} requests/s: give more than 0")
    span_s = requests[-1].arrival_s - requests[0].arrival_s
    stretch = (len(requests) - 1) / rate / span_s if span_s > 0 else 1.0
    return stretched(requests, stretch)


def stretched(requests: Iterable[PlannedRequest], factor: float) -> Iterator[PlannedRequest]:
    """The same requests with all times multiplied: 0.5 is twice the rate."""
    return (replace(request, arrival_s=request.arrival_s * factor) for request in requests)


def windowed(
    requests: Iterable[PlannedRequest], *, start_s: float = 0.0, duration_s: float | None = None
) -> Iterator[PlannedRequest]:
    """Those that arrive in [start_s, start_s + duration_s), whose start becomes time 0."""
    index = 0
    for request in requests:
        arrival_s = request.arrival_s - start_s
        if duration_s is not None and arrival_s >= duration_s:
            return
        if arrival_s >= 0:
            yield replace(request, arrival_s=arrival_s, index=index)
            index += 1


def repeated(requests: Sequence[PlannedRequest], *, gap_s: float) -> Iterator[PlannedRequest]:
    """A plan again and again, without end, so much time between its last and its first.

    Prompts of a later round share text among themselves, not with those of an earlier one.
    """
    span_s = requests[-1].arrival_s + gap_s
    num_names = 1 + max((max(r.hash_ids, default=0) for r in requests), default=0)
    for turn in itertools.count():
        for request in requests:
            yield replace(
                request,
                index=turn * len(requests) + request.index,
                arrival_s=turn * span_s + request.arrival_s,
                hash_ids=tuple(name + turn * num_names for name in request.hash_ids),
            )


def prompt_tokens(request: PlannedRequest) -> list[int]:
    """Token ids that share with other prompts exactly what `hash_ids` say.

    Each block is one id again and again, since nothing but the equality of blocks is looked at: a
    list of references to one number costs what copying them costs.
    """
    prompt: list[int] = []
    for name in request.hash_ids[: -(-request.input_len // HASH_BLOCK)]:
        prompt += [2 * name] * HASH_BLOCK
    missing = request.input_len - len(prompt)
    if missing < 0:
        del prompt[missing:]
    return prompt + [2 * request.index + 1] * missing
