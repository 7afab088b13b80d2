"""Steps recorded around attention: of which sizes, for which batches, and what padding leaves alone."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from functools import partial

import pytest
from tape import Tape
from tiny_driver import MODEL, Driver, Sequence, plain_loop, random_prompt
from tiny_model import (
    LAYERS,
    MAX_REQS,
    NUM_BLOCKS,
    NUM_HOST_BLOCKS,
    VOCAB_SIZE,
    Again,
    PlainBackend,
    Rerun,
    Seeing,
    TinyModel,
    sampling_row,
    tiny_options,
    tiny_runner,
)

from chitu_like.core.model_spec import ModelSpec
from chitu_like.core.output import TokenLogprobs
from chitu_like.distributed.collectives import DetachedGroup
from chitu_like.distributed.parallel_context import ParallelContext
from chitu_like.ops.decode_inputs import DecodeInputs
from chitu_like.worker.decode_attention import decode_sizes
from chitu_like.worker.kv_pool import KVPool
from chitu_like.worker.mixed_steps import MOST_TOKENS, MixedSteps, most_tokens, token_sizes
from chitu_like.worker.model_runner import ModelRunner
from chitu_like.worker.padded_decodes import LONGEST_FIRST, PaddedDecodes
from chitu_like.worker.recorded_steps import StepSizes
from chitu_like.worker.recording import Cut
from chitu_like.worker.slots import Slots

BUDGET = 40
SIZES = token_sizes(BUDGET)


class Noting(Rerun):
    """Notes which recordings are replayed, by the order in which they were made: of pieces, and of each."""

    def __init__(self) -> None:
        self.num_recorded = 0
        self.replayed: list[int] = []
        self.num_of_each = 0
        self.replayed_of_each: list[tuple[int, int]] = []

    def record_each(self, works: list[Callable[[], object]]) -> list[Again]:
        index, self.num_of_each = self.num_of_each, self.num_of_each + 1

        def note(layer: int) -> None:
            self.replayed_of_each.append((index, layer))
            works[layer]()

        return [Again(partial(note, layer)) for layer in range(len(works))]

    def record_pieces(self, work: Callable[[Cut], None]) -> Noted:
        self.num_recorded += 1
        return Noted(self, self.num_recorded - 1, super().record_pieces(work))


class Noted:
    def __init__(self, noting: Noting, index: int, tape: Tape) -> None:
        self._noting, self._index, self._tape = noting, index, tape

    def replay(self) -> None:
        self._noting.replayed.append(self._index)
        self._tape.replay()


def make_driver(recorder: Noting, model: TinyModel = MODEL, **options: int) -> Driver:
    options = {"max_num_batched_tokens": BUDGET} | options
    runner = ModelRunner(tiny_options(**options), model, PlainBackend(), None, lambda: recorder)
    runner.allocate(NUM_BLOCKS, num_host_blocks=NUM_HOST_BLOCKS)
    return Driver(runner)


@pytest.mark.parametrize("most", [1, 16, 40, 64, 300, 512, 2048, 8192])
def test_sizes_waste_little(most: int) -> None:
    sizes = token_sizes(most)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == most
    assert len(sizes) <= 28
    for num_tokens in range(1, most + 1):
        size = next(size for size in sizes if size >= num_tokens)
        assert size - num_tokens < max(64, num_tokens / 4)


def spec_of(hidden: int, inner: int, heads: int) -> ModelSpec:
    return ModelSpec.from_hf_config(
        {
            "architectures": ["Qwen3ForCausalLM"],
            "vocab_size": 1000,
            "hidden_size": hidden,
            "num_hidden_layers": 3,
            "num_attention_heads": heads,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "intermediate_size": inner,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6,
            "hidden_act": "silu",
            "rope_theta": 1e6,
            "torch_dtype": "bfloat16",
        }
    )


def test_a_larger_layer_is_worth_recording_for_fewer_tokens() -> None:
    small, large = spec_of(1024, 3072, 16), spec_of(4096, 12288, 32)
    assert most_tokens(tiny_options(spec=small, max_num_batched_tokens=16384)) == MOST_TOKENS
    assert most_tokens(tiny_options(spec=small, max_num_batched_tokens=500)) == 500
    alone = most_tokens(tiny_options(spec=large))
    assert 640 <= alone < 1024
    halves = ParallelContext(pp_rank=0, pp_size=1, tp=DetachedGroup(0, 2))
    assert 2 * alone <= most_tokens(tiny_options(spec=large, parallel=halves)) < 2 * alone + 128


def test_the_largest_sizes_of_each_kind_are_measured() -> None:
    sizes = StepSizes.of(tiny_options(max_num_batched_tokens=BUDGET), 6)
    assert sizes.largest(1) == StepSizes(num_reqs=[6], num_tokens=[40], num_decodes=[6])
    assert sizes.largest(2) == StepSizes(num_reqs=[4, 6], num_tokens=[32, 40], num_decodes=[4, 6])
    assert len(sizes) == 4
    assert not StepSizes()


def test_a_batch_takes_the_smallest_step_that_holds_it() -> None:
    recorder = Noting()
    driver = make_driver(recorder)
    assert recorder.num_recorded == len(SIZES)
    for num_tokens in [1, 3, 16, 17, 31, 33, 40]:
        sequence = Sequence(random_prompt(50), 9, sampling_row())
        driver.step([(sequence, num_tokens)])
        size = next(size for size in SIZES if size >= num_tokens)
        assert SIZES[::-1][recorder.replayed[-1]] == size  # recorded from the largest down
        driver.leave(sequence)
    num_replayed = len(recorder.replayed)
    driver.step([(Sequence(random_prompt(50), 9, sampling_row()), 41)])
    assert len(recorder.replayed) == num_replayed  # launched kernel by kernel


def test_decodes_alone_take_none() -> None:
    recorder = Noting()
    driver = make_driver(recorder)
    prompt = random_prompt(9)
    tokens = driver.run(Sequence(prompt, 12, sampling_row()), chunk=4)
    assert tokens == plain_loop(prompt, 12, sampling_row())
    assert len(recorder.replayed) == 3


def test_decodes_beside_a_prompt_are_attended_to_by_recordings() -> None:
    recorder = Noting()
    driver = make_driver(recorder)
    sizes = decode_sizes(MAX_REQS)
    assert sizes == [4, 6]
    assert decode_sizes(40) == [4, 16, 32, 40]
    assert recorder.num_of_each == len(sizes)
    first = [Sequence(random_prompt(4 + i % 3), 9, sampling_row()) for i in range(5)]
    for sequence in first:
        driver.step([(sequence, len(sequence.prompt))])
    assert not recorder.replayed_of_each  # prompts alone
    last = Sequence(random_prompt(9), 9, sampling_row())
    for num_decodes, chunk in ((3, 2), (4, 1), (5, 3), (1, 3)):
        driver.step([*((sequence, 1) for sequence in first[:num_decodes]), (last, chunk)])
        index = len(sizes) - 1 - next(i for i, size in enumerate(sizes) if size >= num_decodes)
        assert recorder.replayed_of_each == [(index, layer) for layer in range(LAYERS)]
        recorder.replayed_of_each.clear()
    while driver.in_flight:
        driver.collect()
    for sequence in [*first, last]:
        new = len(sequence.tokens) - len(sequence.prompt)
        assert sequence.tokens == sequence.prompt + plain_loop(sequence.prompt, new, sampling_row())


def test_who_has_most_to_read_is_told_first() -> None:
    options = tiny_options(max_reqs=64)
    slots = Slots(
        max_reqs=64,
        max_blocks=4,
        vocab_size=VOCAB_SIZE,
        device=options.torch_device,
        padding_block=3,
    )
    for size in (LONGEST_FIRST - 1, LONGEST_FIRST):
        inputs = DecodeInputs.empty(size, 4, options.torch_device)
        decodes = PaddedDecodes(size, inputs, slots, {}, options)
        if (order := decodes.batch.decode_order) is not None:
            assert order.tolist() == list(
                range(size)
            )  # kernels are recorded before anything is written
        positions = [3, 11, 7, 11, 0]
        batch = decodes.write(list(range(5)), positions, [1] * 5, [0] * 5)
        assert batch.context_lens == [4, 12, 8, 12, 1] + [1] * (size - 5)
        if size < LONGEST_FIRST:
            assert batch.decode_order is None
        else:
            assert batch.decode_order is not None
            assert batch.decode_order.tolist() == [1, 3, 2, 0, 4, *range(5, size)]
            assert batch.requests(slice(size)).decode_order is batch.decode_order


def prompt_logprobs(*, records: bool) -> list[TokenLogprobs]:
    driver = Driver(tiny_runner(MODEL, records=records))
    row = sampling_row(num_prompt_logprobs=2)
    driver.run(Sequence([7 * i % VOCAB_SIZE for i in range(23)], 3, row), chunk=9)
    return [entry for out in driver.outputs for _, part in out.prompt_logprobs for entry in part]


def test_prompt_logprobs_are_those_of_launched_steps() -> None:
    launched, recorded = prompt_logprobs(records=False), prompt_logprobs(records=True)
    assert len(recorded) == len(launched) == 22
    for those, these in zip(launched, recorded, strict=True):
        assert these.logprob == pytest.approx(those.logprob, abs=1e-4)
        assert [token_id for token_id, _ in these.top] == [token_id for token_id, _ in those.top]


def test_padding_writes_where_nobody_reads() -> None:
    model = Seeing()
    driver = make_driver(Noting(), model)
    first = Sequence(random_prompt(30), 9, sampling_row())
    driver.step([(first, 30)])
    model.keys[NUM_BLOCKS] = 7.0
    before = model.keys.clone()
    second = Sequence(random_prompt(3), 9, sampling_row())
    driver.step([(first, 1), (second, 3)])  # of 16: what the larger batch left there must not count
    changed = {int(i) for i in (model.keys != before).flatten(1).any(1).nonzero()}
    assert changed == {NUM_BLOCKS, first.blocks[30 // 4], *second.blocks}
    assert model.keys.isfinite().all()


def test_steps_that_are_given_up_leave_at_once() -> None:
    """Their memory is counted on, and NCCL waits for them."""
    options = tiny_options(max_num_batched_tokens=BUDGET)
    pool = KVPool(
        options.kv_spec,
        num_blocks=4,
        num_host_blocks=0,
        dtype=options.torch_dtype,
        device=options.torch_device,
    )
    slots = Slots(
        max_reqs=2,
        max_blocks=4,
        vocab_size=VOCAB_SIZE,
        device=options.torch_device,
        padding_block=3,
    )
    steps = MixedSteps(
        MODEL,
        PlainBackend(),
        options,
        slots,
        pool.layers,
        padding_block=3,
        recorder=Rerun(),
        sizes=SIZES,
        decode_sizes=[2],
    )
    watched = weakref.ref(steps)
    gc.disable()
    try:
        del steps
        assert watched() is None
    finally:
        gc.enable()
