"""Pipeline stages on a virtual clock: every stage stays busy, and the micro-batches stay even."""

from __future__ import annotations

import pytest
from fake_executor import FakeExecutor, expected_output
from scheduling import Rig, make_rig

from chitu_like.core.batch import SAMPLED_LAST, ScheduledBatch
from chitu_like.core.output import StepOutput

BATCH_S = 1.0
"""What a batch costs the whole model, however small: reading the weights."""
TOKEN_S = 1.0 / 512
"""What each token adds."""


class PipelinedExecutor(FakeExecutor):
    """Stages that share the model's time evenly and hand every batch on to the next one.

    Args:
        clock: turned to when the batch that is collected left the last stage.
        host_s: seconds the host takes for a step, on top.
        others: as of FakeExecutor.
    """

    def __init__(
        self, clock: list[float], *, host_s: float, num_stages: int, **others: int
    ) -> None:
        super().__init__(num_stages=num_stages, **others)
        self.spans: list[list[tuple[float, float]]] = [[] for _ in range(num_stages)]
        self._clock = clock
        self._host_s = host_s

    def submit(self, batch: ScheduledBatch) -> None:
        now = self._clock[0]
        waits_for = [self._last[slot][0] for slot in _slots_of_unknown_tokens(batch)]
        super().submit(batch)
        seconds = (BATCH_S + TOKEN_S * sum(batch.num_tokens)) / len(self.spans)
        now = max([now, *(self.spans[-1][step_id][1] for step_id in waits_for)])
        for spans in self.spans:
            start = max(now, spans[-1][1]) if spans else now
            now = start + seconds
            spans.append((start, now))

    def wait(self, timeout_s: float) -> bool:
        """As a leader whose last stage is elsewhere: turn the clock until the batch leaves it."""
        left_s = self.spans[-1][self._outputs[0].step_id][1] - self._clock[0]
        self._clock[0] += min(timeout_s, max(left_s, 0.0))
        return left_s <= timeout_s

    def collect(self) -> StepOutput:
        output = super().collect()
        self._clock[0] = max(self._clock[0], self.spans[-1][output.step_id][1]) + self._host_s
        return output

    def busy_share(self, stage: int, first: int, last: int) -> float:
        """Of the time from batch `first` to batch `last` on this stage."""
        spans = self.spans[stage][first:last]
        return sum(end - start for start, end in spans) / (spans[-1][1] - spans[0][0])


def _slots_of_unknown_tokens(batch: ScheduledBatch) -> list[int]:
    decodes = zip(batch.slots[: batch.num_decodes], batch.token_ids, strict=False)
    return [slot for slot, token_id in decodes if token_id == SAMPLED_LAST]


def pipelined_rig(
    num_stages: int, *, overlap: bool = False, host_s: float = 0.0, chunk: int = 512
) -> Rig:
    """Room for 128 requests, and for a prompt of 64 chunks."""
    shape = {"num_blocks": 4096, "block_size": 16}
    rig = make_rig(
        **shape, max_reqs=128, max_seq_len=33000, budget=8192, chunk=chunk, num_stages=num_stages
    )
    executor = PipelinedExecutor(
        rig.clock,
        host_s=host_s,
        num_stages=num_stages,
        max_in_flight=num_stages + overlap,
        **shape,
    )
    rig.executor = executor
    rig.engine._executor = executor
    return rig


def finish(rig: Rig) -> float:
    """Run every request to its end. Returns: seconds that took."""
    start = rig.clock[0]
    while rig.engine.has_requests:
        for delta in rig.engine.step():
            rig.tokens.setdefault(delta.request_id, []).extend(delta.token_ids)
    return rig.clock[0] - start


def add_128(rig: Rig, num_tokens: int) -> None:
    for i in range(128):
        rig.add(str(i), [i, 1], max_tokens=num_tokens)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("num_stages", [2, 3, 4])
def test_every_stage_is_busy_while_128_requests_decode(num_stages, overlap):
    rig = pipelined_rig(num_stages, overlap=overlap)
    add_128(rig, 40)
    finish(rig)
    num_batches = len(rig.executor.batches)
    for stage in range(num_stages):
        assert rig.executor.busy_share(stage, num_batches // 4, num_batches * 3 // 4) > 0.95
    assert rig.tokens["77"] == expected_output([77, 1], 40)


@pytest.mark.parametrize("num_stages", [2, 4])
def test_two_stages_decode_twice_as_much_as_one_of_the_same_batch_size(num_stages):
    num_tokens = 100  # filling and draining the pipeline is part of the time
    one = pipelined_rig(1)
    for i in range(128 // num_stages):
        one.add(str(i), [i, 1], max_tokens=num_tokens)
    many = pipelined_rig(num_stages)
    add_128(many, num_tokens)
    one_speed = 128 // num_stages / finish(one)
    many_speed = 128 / finish(many)
    assert many_speed / one_speed > 0.95 * num_stages


@pytest.mark.parametrize("num_stages", [2, 3, 4])
def test_the_chunks_of_one_long_prompt_fill_the_pipeline(num_stages):
    def seconds(num_stages: int) -> float:
        rig = pipelined_rig(num_stages)
        rig.add("long", [1] * (64 * 512), max_tokens=1)
        return finish(rig)

    # Filling the pipeline, and the shorter chunks at the end, are part of the time.
    assert seconds(1) / seconds(num_stages) > 0.9 * num_stages


def test_with_overlap_the_host_s_time_is_hidden():
    rig = pipelined_rig(2, overlap=True, host_s=0.2)
    add_128(rig, 40)
    finish(rig)
    assert min(rig.executor.busy_share(stage, 20, 60) for stage in range(2)) > 0.95


def test_micro_batches_are_even_whoever_comes_and_goes():
    rig = pipelined_rig(2)
    add_128(rig, 200)
    for _ in range(8):  # all prompts fit one batch, so all could decode in one, too
        rig.engine.step()
    sizes = [batch.num_decodes for batch in rig.executor.batches]
    assert sizes[:2] == [0, 64]
    assert set(sizes[1:]) == {64}
    leaving = rig.executor.batches[-1].slots[1:]
    for slot in leaving:  # a slot is the request's number here
        rig.engine.abort(str(slot))
    for _ in range(6):
        rig.engine.step()
    assert [batch.num_decodes for batch in rig.executor.batches[-4:]] == [33, 32, 33, 32]


def test_the_prompts_that_come_while_others_decode_are_spread_over_the_batches():
    rig = pipelined_rig(2, overlap=True, chunk=4096)
    for i in range(64):
        rig.add(str(i), [i, 1], max_tokens=100)
    for _ in range(10):
        rig.engine.step()
    rig.add("long", [7] * 4096, max_tokens=4)
    num_before = len(rig.executor.batches)
    for _ in range(10):
        rig.engine.step()
    batches = rig.executor.batches[num_before:]
    prefills = [sum(batch.num_tokens) - batch.num_decodes for batch in batches]
    lengths = [length for length in prefills if length]
    assert sum(lengths) == 4096
    assert max(lengths) <= 4096 // 4
    assert 0 not in prefills[: len(lengths)]
    assert {batch.num_decodes for batch in batches[: len(lengths)]} == {32}
    finish(rig)
    assert rig.tokens["long"] == expected_output([7] * 4096, 4)


def test_one_request_alone_waits_for_its_token_and_for_nothing_else():
    rig = pipelined_rig(4, overlap=True)
    rig.add("a", [1, 2, 3], max_tokens=6)
    assert finish(rig) == pytest.approx(6 * BATCH_S + 8 * TOKEN_S)
    assert rig.tokens["a"] == expected_output([1, 2, 3], 6)


@pytest.mark.parametrize("num_stages", [1, 2, 4])
def test_an_eos_costs_at_most_one_dropped_token_with_any_number_of_stages(num_stages):
    rig = pipelined_rig(num_stages, overlap=True)
    eos = {i: expected_output([i, 1], 20)[10] for i in range(128)}
    for i, token in eos.items():
        rig.add(str(i), [i, 1], max_tokens=30, eos=[token])
    finish(rig)
    num_given = sum(len(tokens) for tokens in rig.tokens.values())
    num_computed = sum(sum(batch.samples) for batch in rig.executor.batches)
    assert 0 < num_computed - num_given <= 128
    assert rig.blocks.usage == 0.0


def test_the_fake_notices_a_token_that_is_used_before_it_can_have_arrived():
    rig = make_rig(num_stages=1, max_in_flight=2)
    rig.executor = FakeExecutor(num_blocks=64, block_size=4, max_in_flight=2, num_stages=2)
    rig.engine._executor = rig.executor
    rig.add("a", [1, 2])
    with pytest.raises(AssertionError, match="used too early"):
        rig.step()


@pytest.mark.parametrize("num_stages", [2, 4])
def test_a_newcomer_enters_the_pipeline_while_a_lonely_batch_is_further_down(num_stages):
    """It need not wait until the batch before it has left the last stage."""
    rig = pipelined_rig(num_stages, overlap=True)
    rig.add("old", [1, 2], max_tokens=30)
    while len(rig.executor.batches) < 5:
        if rig.engine.is_due(0.01):
            rig.step_without_clock()
    assert len(rig.engine._in_flight) == 1  # its next token is on the way through the stages
    arrival_s = rig.clock[0]
    rig.add("new", [3, 4], max_tokens=1)
    while "new" not in rig.ends:
        if rig.engine.is_due(0.01):
            rig.step_without_clock()
    alone_s = BATCH_S + 2 * TOKEN_S
    assert rig.clock[0] - arrival_s < alone_s + 1.5 * BATCH_S / num_stages
    assert rig.tokens["new"] == expected_output([3, 4], 1)
