"""The sampler over one batch: what rows share, and what a row may not see of another."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from reference_sampler import reference_token
from tiny_model import random_row, sampling_row

from chitu_like.core.batch import SamplingRow, ScheduledBatch, SlotRow
from chitu_like.worker.device_sampling import DeviceSampling
from chitu_like.worker.sampler import Sampled, SampledRows, Sampler
from chitu_like.worker.slots import Slots

CPU = torch.device("cpu")
VOCAB_SIZE = 53


def make_slots(
    rows: list[SamplingRow], histories: list[list[int]], prompt_lens: list[int]
) -> tuple[Slots, SampledRows]:
    """One request a slot, each about to draw the token after its history."""
    count = len(rows)
    slots = Slots(max_reqs=count, max_blocks=1, vocab_size=VOCAB_SIZE, device=CPU)
    batch = ScheduledBatch(
        step_id=0,
        slots=list(range(count)),
        num_tokens=[1] * count,
        num_computed=[len(history) - 1 for history in histories],
        samples=[True] * count,
        token_ids=[history[-1] for history in histories],
        new_blocks=[[]] * count,
        rows=[
            SlotRow(slot, prompt_len, [0], row, history)
            for slot, (row, history, prompt_len) in enumerate(
                zip(rows, histories, prompt_lens, strict=True)
            )
        ],
        swap_out=[],
        swap_in=[],
        num_decodes=count,
    )
    slots.apply(batch)
    return slots, SampledRows.of(batch, slots)


def sample(logits: torch.Tensor, rows: list[SamplingRow]) -> Sampled:
    slots, sampled = make_slots(rows, [[1]] * len(rows), [1] * len(rows))
    return Sampler(CPU).sample(logits.clone(), sampled, slots)


@pytest.mark.parametrize("seed", range(10))
def test_every_mixture_of_rows_gives_the_reference_tokens(seed: int) -> None:
    rng = random.Random(seed)
    count = (1, 2, 9, 40, 150)[seed % 5]
    rows = [random_row(rng) for _ in range(count)]
    histories = [
        [rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(1, 30))] for _ in range(count)
    ]
    prompt_lens = [rng.randint(1, len(history)) for history in histories]
    logits = torch.randn(count, VOCAB_SIZE) * 3
    slots, sampled_rows = make_slots(rows, histories, prompt_lens)
    made = Sampler(CPU).sample(logits.clone(), sampled_rows, slots)
    expected = [
        reference_token(logits[i].tolist(), history[:prompt_len], history[prompt_len:], rows[i])
        for i, (history, prompt_len) in enumerate(zip(histories, prompt_lens, strict=True))
    ]
    assert made.token_ids.tolist() == expected
    assert slots.last_sampled[:count].tolist() == expected
    assert not made.is_unsound.any()


def simple_row(rng: random.Random) -> SamplingRow:
    """Any mixture of what needs neither edited logits nor log-probabilities."""
    return sampling_row(
        seed=rng.getrandbits(64),
        temperature=rng.choice([0.0, 0.3, 1.0, 3.0]),
        top_p=rng.choice([1.0, 0.8]),
        top_k=rng.choice([0, 5, 10**6]),
        min_p=rng.choice([0.0, 0.05]),
    )


def test_the_mirror_on_the_device_draws_the_same_tokens() -> None:
    rng = random.Random(11)
    rows = [simple_row(rng) for _ in range(20)]
    slots, sampled_rows = make_slots(rows, [[1, 2]] * 20, [1] * 20)
    logits = torch.randn(20, VOCAB_SIZE) * 3
    sampler = Sampler(CPU)
    assert sampler.is_simple(sampled_rows, slots)
    expected = sampler.sample(logits.clone(), sampled_rows, slots).token_ids
    mirror = DeviceSampling(20, CPU)
    mirror.apply(list(range(12)), slots.sampling)
    mirror.apply([], slots.sampling)
    mirror.apply(list(range(19, 11, -1)), slots.sampling)
    last_sampled = torch.zeros(21, dtype=torch.int64)
    # Padding: the row behind the slots, which is greedy.
    who = torch.tensor([*range(20), 20, 20], dtype=torch.int32)
    positions = torch.tensor([1] * 20 + [0, 0], dtype=torch.int32)
    padded = torch.cat([logits, torch.zeros(2, VOCAB_SIZE)])
    drawn = sampler.draw(padded, who, positions, mirror.params, last_sampled)
    assert drawn.token_ids.tolist() == [*expected.tolist(), 0, 0]
    assert last_sampled.tolist() == [*expected.tolist(), 0]


@pytest.mark.parametrize(
    "change",
    [
        {"repetition_penalty": 1.1},
        {"logit_bias": [(3, 1.0)]},
        {"min_tokens": 2, "stop_ids": [4]},
        {"num_logprobs": 0},
    ],
    ids=str,
)
def test_who_edits_logits_or_wants_logprobs_is_not_simple(change: dict[str, object]) -> None:
    rows = [sampling_row(temperature=1.0, top_k=3), sampling_row(**change)]
    slots, both = make_slots(rows, [[1]] * 2, [1] * 2)
    assert not Sampler.is_simple(both, slots)
    first = SampledRows(slots=both.slots[:1], output_positions=both.output_positions[:1])
    assert Sampler.is_simple(first, slots)


def test_a_reused_slot_is_mirrored_anew() -> None:
    slots, _ = make_slots([sampling_row(temperature=1.0, top_k=3)] * 2, [[1]] * 2, [1] * 2)
    mirror = DeviceSampling(2, CPU)
    mirror.apply([0, 1], slots.sampling)
    slots.sampling.set(1, sampling_row(temperature=0.5, min_p=0.1, seed=2**64 - 1))
    mirror.apply([1], slots.sampling)
    assert mirror.params[:2].tolist() == slots.sampling.draw_params.tolist()
    assert not mirror.params[2].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_greedy_takes_the_first_of_equals(dtype: torch.dtype) -> None:
    logits = torch.zeros(3, 5_000, dtype=dtype)
    logits[0, [4_321, 77, 1_234]] = 5
    logits[1, 4_999] = 5
    assert sample(logits, [sampling_row()] * 3).token_ids.tolist() == [77, 4_999, 0]


@pytest.mark.parametrize("temperature", [1e-6, 1e-300, 1e-4])
def test_tiny_temperatures_are_greedy_and_never_overflow(temperature: float) -> None:
    logits = torch.randn(1, VOCAB_SIZE) * 50
    row = sampling_row(temperature=temperature, seed=2**64 - 1)
    assert sample(logits, [row]).token_ids.tolist() == [logits.argmax().item()]


def test_a_nan_counts_as_less_than_any_number() -> None:
    logits = torch.randn(2, VOCAB_SIZE)
    best = logits.topk(2, dim=-1).indices.tolist()
    logits[0, best[0][0]] = math.nan
    made = sample(logits, [sampling_row(num_logprobs=3)] * 2)
    assert made.token_ids.tolist() == [best[0][1], best[1][0]]
    assert made.is_unsound.tolist() == [True, False]
    assert made.logprobs is not None
    assert made.logprobs.tensors.logprobs.isfinite().all()


def test_an_infinite_logit_is_drawn() -> None:
    logits = torch.randn(1, VOCAB_SIZE)
    logits[0, 9] = math.inf
    row = sampling_row(temperature=1.0, repetition_penalty=0.5, seed=4)
    assert sample(logits, [row]).token_ids.tolist() == [9]


def test_seeds_beyond_32_bits_and_late_positions_matter() -> None:
    logits = torch.zeros(1, VOCAB_SIZE)
    drawn = {
        sample(logits, [sampling_row(temperature=1.0, seed=seed << 32)]).token_ids.item()
        for seed in range(50)
    }
    assert len(drawn) > 20


def test_a_reused_slot_forgets_everything() -> None:
    full = sampling_row(
        presence_penalty=1.0,
        logit_bias=[(2, 5.0)],
        min_tokens=9,
        stop_ids=[3],
        num_logprobs=1,
        num_prompt_logprobs=1,
    )
    slots, _ = make_slots([full], [[1, 2, 3]], [2])
    assert slots.token_counts.is_counted(np.array([0])).all()
    assert slots.prompts[0].tolist() == [1, 2]
    row = SlotRow(0, 1, [0], sampling_row(), [])
    slots.apply(ScheduledBatch(1, [0], [1], [0], [True], [1], [[]], [row], [], [], 0))
    table = slots.sampling
    assert not slots.token_counts.is_counted(np.array([0])).any()
    assert not slots.prompts
    assert not table.logit_bias
    assert not table.stop_ids
    assert not table.edits_logits.any()
    assert table.num_logprobs[0] == table.num_prompt_logprobs[0] == -1


def test_logprob_ties_name_the_smaller_id_first() -> None:
    logits = torch.zeros(1, VOCAB_SIZE)
    logits[0, [30, 7, 12]] = 2.0
    made = sample(logits, [sampling_row(num_logprobs=3)])
    assert made.logprobs is not None
    (entry,) = made.logprobs.to_entries(made.logprobs.tensors)
    assert (entry.token_id, entry.rank) == (7, 1)
    assert [token for token, _ in entry.top] == [7, 12, 30]
