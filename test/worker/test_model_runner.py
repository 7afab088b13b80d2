"""Scheduled batches, however they are cut, give the tokens of a plain loop without any cache."""

from __future__ import annotations

import random

import pytest
import torch
from reference_sampler import edited_logits
from tiny_driver import MODEL, Driver, Sequence, plain_loop, random_prompt
from tiny_model import (
    MAX_REQS,
    VOCAB_SIZE,
    TinyModel,
    random_row,
    sampling_row,
    tiny_runner,
)

from chitu_like.worker.memory_profile import plan_memory


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 17, 100])
@pytest.mark.parametrize("depth", [1, 2])
def test_any_chunk_size_gives_the_tokens_of_a_plain_loop(chunk: int, depth: int) -> None:
    prompt = random_prompt(17)
    driver = Driver(tiny_runner(MODEL), depth=depth)
    assert driver.run(Sequence(prompt, 12, sampling_row()), chunk) == plain_loop(
        prompt, 12, sampling_row()
    )


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("records", [False, True], ids=["launched", "recorded"])
@pytest.mark.parametrize("resend", [False, True], ids=["changes", "whole rows"])
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_random_histories_give_the_tokens_of_a_plain_loop(
    seed: int, depth: int, resend: bool, records: bool, device: str
) -> None:
    """Mixed batches, chunks, preemption by swap and recompute, reused slots, any parameters."""
    random.seed(seed)
    model = MODEL if device == "cpu" else TinyModel(device)
    runner = tiny_runner(model, records=records, device=device)
    driver = Driver(runner, depth=depth, resend=resend)
    everyone = [
        Sequence(random_prompt(random.randint(1, 20)), random.randint(1, 14), random_row(random))
        for _ in range(14)
    ]
    waiting, running = list(everyone), []
    while waiting or running:
        while waiting and len(running) < MAX_REQS and random.random() < 0.6:
            running.append(waiting.pop(0))
            driver.resume(running[-1])
        chunks = [
            (sequence, random.randint(1, sequence.num_left))
            for sequence in random.sample(running, len(running))
            if not sequence.is_done and (sequence.is_new or random.random() < 0.9)
        ]
        if chunks:
            driver.step(chunks)
        done = [sequence for sequence in running if sequence.is_done]
        if done:
            while driver.in_flight:
                driver.collect()
        for sequence in done:
            running.remove(sequence)
            driver.leave(sequence)
        if running and random.random() < 0.3:
            sequence = random.choice(running)
            if not sequence.is_new:
                running.remove(sequence)
                driver.preempt(sequence)
                waiting.append(sequence)
    for sequence in everyone:
        expected = plain_loop(sequence.prompt, sequence.num_output, sequence.sampling)
        assert sequence.tokens[len(sequence.prompt) :] == expected


def test_a_batch_that_only_moves_blocks_is_computed() -> None:
    driver = Driver(tiny_runner(MODEL))
    sequence = Sequence(random_prompt(9), 5, sampling_row())
    driver.step([(sequence, 9)])
    pairs = [(block, host) for host, block in enumerate(sequence.blocks)]
    taken = [driver.free_blocks.pop() for _ in pairs]
    driver.swap_out = pairs
    driver.step([])
    driver.leave(sequence)
    sequence.blocks = taken
    driver.swap_in = [(host, block) for (_, host), block in zip(pairs, taken, strict=True)]
    assert driver.run(sequence) == plain_loop(sequence.prompt, 5, sampling_row())


def test_a_block_may_be_swapped_out_and_taken_in_the_same_step() -> None:
    driver = Driver(tiny_runner(MODEL))
    first = Sequence(random_prompt(30), 4, sampling_row())
    second = Sequence(random_prompt(30), 4, sampling_row())
    driver.step([(first, 30)])
    blocks = first.blocks
    first.host_blocks = [driver.free_host_blocks.pop() for _ in blocks]
    driver.swap_out = list(zip(blocks, first.host_blocks, strict=True))
    driver.leave(first)
    driver.free_blocks = driver.free_blocks[len(blocks) :] + blocks  # popped from the end: reused
    assert driver.run(second) == plain_loop(second.prompt, 4, sampling_row())
    driver.resume(first)
    assert driver.run(first) == plain_loop(first.prompt, 4, sampling_row())


@pytest.mark.parametrize("chunk", [4, 100])
def test_logprobs_are_those_of_the_edited_logits(chunk: int) -> None:
    prompt = random_prompt(8)
    sampling = sampling_row(
        num_logprobs=3, temperature=2.0, seed=11, repetition_penalty=1.3, logit_bias=[(4, 2.0)]
    )
    driver = Driver(tiny_runner(MODEL))
    output = driver.run(Sequence(prompt, 6, sampling), chunk)
    entries = [entry for out in driver.outputs for entry in out.logprobs]
    assert len(entries) == 6
    for i, entry in enumerate(entries):
        logits = MODEL.recompute(prompt + output[:i])[-1].tolist()
        edited = edited_logits(logits, prompt, output[:i], sampling)
        logprobs = torch.tensor(edited, dtype=torch.float64).log_softmax(0)
        best = sorted(range(VOCAB_SIZE), key=lambda token: -edited[token])
        assert entry.token_id == output[i]
        assert entry.logprob == pytest.approx(logprobs[output[i]].item(), abs=1e-4)
        assert entry.rank == best.index(output[i]) + 1
        assert [token for token, _ in entry.top] == best[:3]
        assert [value for _, value in entry.top] == pytest.approx(
            logprobs[best[:3]].tolist(), abs=1e-4
        )


@pytest.mark.parametrize("chunk", [1, 3, 8, 100])
def test_prompt_logprobs_cover_every_prompt_token_but_the_first(chunk: int) -> None:
    prompt = random_prompt(16)
    driver = Driver(tiny_runner(MODEL))
    driver.run(Sequence(prompt, 3, sampling_row(num_prompt_logprobs=2)), chunk)
    entries = [entry for out in driver.outputs for _, part in out.prompt_logprobs for entry in part]
    logprobs = MODEL.recompute(prompt).log_softmax(-1)
    assert [entry.token_id for entry in entries] == prompt[1:]
    for position, entry in enumerate(entries):
        assert entry.logprob == pytest.approx(
            logprobs[position, prompt[position + 1]].item(), abs=1e-4
        )
        assert entry.top[0][0] == logprobs[position].argmax().item()
        assert len(entry.top) == 2


def test_long_prompts_give_their_logprobs_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chitu_like.worker.prompt_logprobs.ROWS_AT_ONCE", 5)
    test_prompt_logprobs_cover_every_prompt_token_but_the_first(100)


def test_requests_without_logprobs_get_none_beside_those_that_asked() -> None:
    driver = Driver(tiny_runner(MODEL))
    asked = Sequence(random_prompt(3), 1, sampling_row(num_logprobs=0))
    silent = Sequence(random_prompt(3), 1, sampling_row())
    driver.step([(silent, 3), (asked, 3)])
    assert driver.outputs[0].logprobs[0] is None
    assert driver.outputs[0].logprobs[1] is not None
    assert driver.outputs[0].logprobs[1].top == []


@pytest.mark.gpu
def test_memory_of_a_cuda_device_is_measured_by_running() -> None:
    runner = tiny_runner(TinyModel("cuda"), records=True, device="cuda", max_num_batched_tokens=256)
    planned = plan_memory(runner, 0.5)
    assert planned.graph_bytes > 0
    assert planned.num_blocks > 10_000
    assert planned.activation_bytes > 0
    total = planned.other_bytes + planned.weight_bytes + planned.activation_bytes
    total += planned.graph_bytes
    assert total + planned.kv_bytes <= planned.total_bytes / 2
    runner.allocate(1000)
    assert Driver(runner).run(Sequence([1, 2, 3], 4, sampling_row())) == plain_loop(
        [1, 2, 3], 4, sampling_row()
    )


@pytest.mark.gpu
@pytest.mark.parametrize("records", [False, True], ids=["launched", "recorded"])
def test_launching_does_not_wait_for_the_device(records: bool) -> None:
    """Where torch is told to call every wait an error, steps still run."""
    runner = tiny_runner(TinyModel("cuda"), records=records, device="cuda")
    row = sampling_row(
        temperature=1.0, top_p=0.9, top_k=7, min_p=0.1, num_logprobs=2,
        num_prompt_logprobs=-1 if records else 1,  # with them no step is replayed
        presence_penalty=1.0, logit_bias=[(3, 1.0)], min_tokens=9, stop_ids=[4],
    )  # fmt: skip
    driver = Driver(runner, depth=10**6)
    sequence = Sequence(random_prompt(5), 6, row)
    torch.cuda.set_sync_debug_mode("error")
    try:
        driver.step([(sequence, 5)])
        for _ in range(4):
            driver.step([(sequence, 1)])
        driver.swap_out = [(sequence.blocks[0], 3)]
        driver.swap_in = [(3, sequence.blocks[0])]
        driver.step([(sequence, 1)])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    while driver.in_flight:
        driver.collect()
    assert sequence.tokens[5:] == plain_loop(sequence.prompt, 6, row)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_unsound_logits_spoil_neither_their_batch_nor_the_process(
    bad: float, temperature: float, caplog: pytest.LogCaptureFixture
) -> None:
    class Unsound(TinyModel):
        def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
            logits = super().compute_logits(hidden_states)
            logits[0] = bad
            return logits

    rows = [
        sampling_row(temperature=temperature, seed=seed, num_logprobs=2, top_p=0.9, min_p=0.01)
        for seed in range(3)
    ]
    sequences = [Sequence(random_prompt(4), 1, row) for row in rows]
    driver = Driver(tiny_runner(Unsound()))
    for _ in range(3):
        driver.step([(sequence, sequence.num_left) for sequence in sequences])
    first, *sound = sequences
    assert all(0 <= token < VOCAB_SIZE for token in first.tokens)
    for sequence in sound:
        assert sequence.tokens[4:] == plain_loop(sequence.prompt, 3, sequence.sampling)
    assert len([r for r in caplog.records if "NaN or infinity" in r.message]) == 1
