"""Recorded steps: for which batches, of which sizes, and beside whom."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tiny_driver import MODEL, Driver, Sequence, plain_loop, random_prompt
from tiny_model import (
    MAX_REQS,
    NUM_BLOCKS,
    NUM_HOST_BLOCKS,
    PlainBackend,
    Rerun,
    Seeing,
    TinyModel,
    sampling_row,
    tiny_options,
)

from chitu_like.attention.base import AttentionMetadata, ForwardBatch
from chitu_like.worker.decode_steps import step_sizes
from chitu_like.worker.model_runner import ModelRunner
from chitu_like.worker.recorded_steps import StepSizes


class Noting(Rerun):
    """Records without graphs, and notes in which order steps of decodes were recorded and replayed."""

    def __init__(self) -> None:
        self.num_recorded = 0
        self.replayed: list[int] = []

    def record(self, work: Callable[[], None]) -> Replay:
        self.num_recorded += 1
        return Replay(self, self.num_recorded - 1, work)


class Replay:
    def __init__(self, noting: Noting, index: int, work: Callable[[], None]) -> None:
        self._noting, self._index, self._work = noting, index, work

    def replay(self) -> None:
        self._noting.replayed.append(self._index)
        self._work()


class Planning(PlainBackend):
    """Notes the contexts it plans for."""

    def __init__(self) -> None:
        self.planned: list[list[int]] = []

    def replan(self, metadata: AttentionMetadata, batch: ForwardBatch) -> None:
        self.planned.append(batch.context_lens)


def recording_driver(
    recorder: Noting,
    backend: PlainBackend | None = None,
    *,
    model: TinyModel = MODEL,
    depth: int = 1,
) -> Driver:
    runner = ModelRunner(tiny_options(), model, backend or PlainBackend(), None, lambda: recorder)
    runner.allocate(NUM_BLOCKS, num_host_blocks=NUM_HOST_BLOCKS)
    return Driver(runner, depth=depth)


@pytest.mark.parametrize("max_reqs", [1, 2, 3, 7, 8, 64, 100, 256, 300, 1024])
def test_sizes_waste_little(max_reqs: int) -> None:
    sizes = step_sizes(max_reqs)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == max_reqs
    for num_reqs in range(1, max_reqs + 1):
        size = next(size for size in sizes if size >= num_reqs)
        assert size - num_reqs < max(8, num_reqs / 4)
        assert size <= 1.13 * num_reqs or num_reqs <= 128
    assert len(sizes) < 60


def test_a_batch_takes_the_smallest_step_that_holds_it() -> None:
    recorder, backend = Noting(), Planning()
    driver = recording_driver(recorder, backend)
    sizes = step_sizes(MAX_REQS)
    assert recorder.num_recorded == len(sizes)
    sequences = [Sequence(random_prompt(2), 9, sampling_row()) for _ in range(MAX_REQS)]
    driver.step([(sequence, 2) for sequence in sequences])
    assert recorder.replayed == []  # a step of prompts
    for num_reqs in range(1, MAX_REQS + 1):
        driver.step([(sequence, 1) for sequence in sequences[:num_reqs]])
        size = next(size for size in sizes if size >= num_reqs)
        assert sizes[::-1][recorder.replayed[-1]] == size  # recorded from the largest down
        contexts = [sequence.num_computed for sequence in sequences[:num_reqs]]
        assert backend.planned[-1] == contexts + [1] * (size - num_reqs)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_replayed_decodes_give_the_tokens_of_a_plain_loop(depth: int) -> None:
    recorder = Noting()
    driver = recording_driver(recorder, depth=depth)
    prompt = random_prompt(9)
    row = sampling_row(seed=5, temperature=1.0)
    assert driver.run(Sequence(prompt, 12, row)) == plain_loop(prompt, 12, row)
    assert len(recorder.replayed) == 11


def test_a_chunk_of_one_prompt_token_is_not_replayed() -> None:
    recorder = Noting()
    driver = recording_driver(recorder)
    prompt = random_prompt(5)
    assert driver.run(Sequence(prompt, 3, sampling_row()), chunk=1) == plain_loop(
        prompt, 3, sampling_row()
    )
    assert len(recorder.replayed) == 2


def test_a_request_that_wants_prompt_logprobs_is_replayed_behind_its_prompt() -> None:
    recorder = Noting()
    driver = recording_driver(recorder)
    driver.run(Sequence(random_prompt(5), 3, sampling_row(num_prompt_logprobs=1)), chunk=1)
    assert len(recorder.replayed) == 2
    entries = [entry for out in driver.outputs for _, part in out.prompt_logprobs for entry in part]
    assert len(entries) == 4


def test_allocating_again_starts_from_nothing() -> None:
    recorder = Noting()
    driver = recording_driver(recorder)
    driver.run(Sequence(random_prompt(5), 3, sampling_row()))
    driver.runner.allocate(NUM_BLOCKS, sizes=StepSizes())
    num_replayed = len(recorder.replayed)
    prompt = random_prompt(4)
    again = Driver(driver.runner)
    assert again.run(Sequence(prompt, 3, sampling_row())) == plain_loop(prompt, 3, sampling_row())
    assert len(recorder.replayed) == num_replayed


def test_without_its_steps_a_runner_goes_on() -> None:
    recorder = Noting()
    driver = recording_driver(recorder)
    driver.runner.drop_steps()
    prompt = random_prompt(4)
    tokens = driver.run(Sequence(prompt, 3, sampling_row()))
    assert tokens == plain_loop(prompt, 3, sampling_row())
    assert recorder.replayed == []


def test_padding_writes_where_nobody_reads() -> None:
    model = Seeing()
    driver = recording_driver(Noting(), model=model)
    sequences = [Sequence(random_prompt(3), 9, sampling_row()) for _ in range(5)]
    driver.step([(sequence, 3) for sequence in sequences])
    model.keys[NUM_BLOCKS] = 7.0  # the prompts were padded too
    before = model.keys.clone()
    driver.step([(sequence, 1) for sequence in sequences])
    changed = {int(i) for i in (model.keys != before).flatten(1).any(1).nonzero()}
    own = {sequence.blocks[3 // 4] for sequence in sequences}
    assert changed - {NUM_BLOCKS} == own
    assert NUM_BLOCKS in changed  # five requests in a step of six: one sat in the padding block
