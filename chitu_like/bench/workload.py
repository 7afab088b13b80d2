"""What a load generator is to send: a trace at a rate, and with which tokens."""

from __future__ import annotations

import random
from collections.abc import Sequence

from chitu_like.bench.random_prompts import random_prompt
from chitu_like.simulator.workload import HASH_BLOCK, PlannedRequest, at_rate

MAX_REQUESTS = 10_000_000


def plan_trace(
    rows: Sequence[PlannedRequest],
    *,
    rate: float | None,
    count: int | None,
    duration_s: float | None,
) -> list[PlannedRequest]:
    """A trace as it was recorded; with a rate, stretched evenly to that many requests/s."""
    requests = rows if rate is None else list(at_rate(rows, rate))
    return [r for r in requests[:count] if duration_s is None or r.arrival_s < duration_s]


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
