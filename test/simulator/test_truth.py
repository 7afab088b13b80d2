"""The simulator against the real engine: the same steps, whatever the clock showed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import pytest
from simulator.simulated import LinearCost

from chitu_like.core.batch import ScheduledBatch
from chitu_like.core.sampling_params import SamplingParams
from chitu_like.engine.messages import AddRequest

pytest.importorskip("torch")
from chitu_like.bench.engine_tape import TapedInstance, replay

COST = LinearCost(step_s=0.001)


def arrivals(count: int, seed: int, *, ignore_eos: bool) -> list[tuple[float, AddRequest]]:
    """Prompts of which some share a prefix, half a second long, more than fit at once."""
    rng = random.Random(seed)
    shared = [rng.randrange(5, 400) for _ in range(48)]
    times = sorted(rng.random() * 0.5 for _ in range(count))
    found = []
    for index, time_s in enumerate(times):
        prompt = shared[: rng.choice([0, 16, 48])]
        prompt = prompt + [rng.randrange(5, 400) for _ in range(rng.randrange(1, 90))]
        params = SamplingParams(max_tokens=rng.randrange(1, 40), ignore_eos=ignore_eos)
        eos = list(range(0, 400, 9))  # so many that some answers end early
        found.append((time_s, AddRequest(str(index), prompt, params, eos_token_ids=eos)))
    return found


@contextmanager
def taped(case: str) -> Iterator[TapedInstance]:
    """A small instance; a crowded one preempts for want of blocks, to the host as far as it goes."""
    keys = ["infer.max_reqs=8", "infer.block_size=16", "infer.prefill_chunk_size=64"]
    keys += ["infer.max_seq_len=256", "infer.num_blocks=64", f"scheduler.type={case}"]
    if case == "crowded":
        keys[-2:] = ["infer.num_blocks=24", "infer.swap_space_gib=0.001"]
    found = TapedInstance("models=tiny-chat", "infer.device=cpu", "dtype=float32", *keys)
    yield found
    found.shutdown()


def without_sampled_ids(batch: ScheduledBatch) -> ScheduledBatch:
    return msgspec.structs.replace(batch, token_ids=[])


@pytest.mark.parametrize("case", ["prefill_first", "fcfs", "crowded"])
def test_the_simulator_schedules_the_batches_that_the_engine_scheduled(case: str) -> None:
    with taped(case) as instance:
        tape = instance.serve(arrivals(40, seed=1, ignore_eos=False))
        assert len(tape.finished) == 40
        assert len({step for step, _ in tape.entries}) > 5, "they entered at different steps"
        assert any(batch.swap_in for batch in tape.batches) == (case == "crowded")
        assert replay(tape, instance.shape([COST]), with_its_tokens=True) == tape.batches


def test_lengths_alone_say_which_batches_there_are() -> None:
    """Without knowing what a model says: nothing but the ids of its own tokens differs."""
    with taped("crowded") as instance:
        tape = instance.serve(arrivals(40, seed=2, ignore_eos=True))
        assert instance.engine.stats().num_preemptions > 0
        found = replay(tape, instance.shape([COST]), with_its_tokens=False)
    assert list(map(without_sampled_ids, found)) == list(map(without_sampled_ids, tape.batches))
