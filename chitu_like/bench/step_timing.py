"""Seconds of steps, as the engine makes them: one computes while the next is on its way."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence

from chitu_like.bench.step_shapes import StepShape
from chitu_like.core.batch import ScheduledBatch
from chitu_like.engine.executor import Executor

LEAST_REPEATS, MOST_REPEATS = 2, 20


def time_steps(
    executor: Executor,
    steps: Sequence[StepShape],
    *,
    block_size: int,
    rounds: int,
    target_s: float,
    seed: int = 0,
    on_step: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[float]]:
    """Seconds of each step in each round.

    All steps take turns in each round, in another order, so that whatever slows the machine for a
    while slows none of them in all rounds.

    Args:
        executor: of one pipeline stage.
        steps: each fits.
        block_size: tokens of a KV block.
        rounds: behind a first one that warms up and finds how often to repeat.
        target_s: that a measurement should last.
        seed: of the order.
        on_step: called after each measurement.
        clock: seconds that never go back.

    Returns: [num_steps][rounds].
    """
    rng = random.Random(seed)
    order = list(range(len(steps)))
    repeats = [LEAST_REPEATS] * len(steps)
    found: list[list[float]] = [[] for _ in steps]
    for round_ in range(rounds + 1):
        rng.shuffle(order)
        for index in order:
            batches = steps[index].batches(block_size)
            seconds = seconds_per_step(executor, *batches, repeats=repeats[index], clock=clock)
            if round_:
                found[index].append(seconds)
            else:
                wanted = round(target_s / max(seconds, 1e-6))
                repeats[index] = max(LEAST_REPEATS, min(MOST_REPEATS, wanted))
            on_step()
    return found


def seconds_per_step(
    executor: Executor,
    first: ScheduledBatch,
    again: ScheduledBatch,
    *,
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds between the ends of two steps, while the executor is kept full.

    Args:
        executor: idle; idle again afterwards.
        first: brings the requests.
        again: the step to time.
        repeats: of it.
        clock: seconds that never go back.
    """
    executor.submit(first)
    executor.collect()
    for _ in range(executor.max_in_flight):
        executor.submit(again)
    executor.collect()
    start_s = clock()
    for _ in range(repeats):
        executor.submit(again)
        executor.collect()
    elapsed_s = clock() - start_s
    for _ in range(executor.max_in_flight - 1):
        executor.collect()
    return elapsed_s / repeats


def spread(rounds: Sequence[float]) -> float:
    """How far rounds are from their median, relative to it: the median distance."""
    middle = statistics.median(rounds)
    return statistics.median(abs(seconds / middle - 1) for seconds in rounds)
