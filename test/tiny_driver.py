"""Batches scheduled by hand, for tests of the model runner."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from reference_sampler import reference_token
from tiny_model import BLOCK_SIZE, MAX_REQS, NUM_BLOCKS, NUM_HOST_BLOCKS, VOCAB_SIZE, TinyModel

from chitu_like.core.batch import SAMPLED_LAST, SamplingRow, ScheduledBatch, SlotRow
from chitu_like.core.output import StepOutput
from chitu_like.worker.model_runner import ModelRunner

MODEL = TinyModel()


@dataclass(eq=False)
class Sequence:
    """One request as a scheduler sees it; `tokens` grows as steps are collected."""

    prompt: list[int]
    num_output: int
    sampling: SamplingRow
    slot: int = -1
    blocks: list[int] = field(default_factory=list)
    host_blocks: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    num_computed: int = 0
    num_sampled: int = 0
    is_new: bool = True

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)

    @property
    def num_left(self) -> int:
        return len(self.prompt) + self.num_sampled - self.num_computed

    def decodes(self, num_tokens: int) -> bool:
        return num_tokens == 1 and self.num_computed >= len(self.prompt)

    @property
    def is_done(self) -> bool:
        return self.num_sampled == self.num_output


class Driver:
    """Schedules by hand; keeps up to `depth` steps in flight, so tokens may be unknown to it."""

    def __init__(self, runner: ModelRunner, *, depth: int = 1, resend: bool = False) -> None:
        self.runner, self.depth, self.resend = runner, depth, resend
        self.free_blocks = random.sample(range(NUM_BLOCKS), NUM_BLOCKS)
        self.free_host_blocks = list(range(NUM_HOST_BLOCKS))
        self.free_slots = random.sample(range(MAX_REQS), MAX_REQS)
        self.in_flight: list[tuple[list[Sequence], object]] = []
        self.step_id = 0
        self.swap_out: list[tuple[int, int]] = []
        self.swap_in: list[tuple[int, int]] = []
        self.outputs: list[StepOutput] = []

    def step(self, chunks: list[tuple[Sequence, int]]) -> None:
        chunks = sorted(chunks, key=lambda chunk: not chunk[0].decodes(chunk[1]))
        rows, new_blocks, token_ids, samples = [], [], [], []
        for sequence, num_tokens in chunks:
            start, stop = sequence.num_computed, sequence.num_computed + num_tokens
            if sequence.is_new:
                sequence.slot = self.free_slots.pop()
            needed = -(-stop // BLOCK_SIZE) - len(sequence.blocks)
            appended = [self.free_blocks.pop() for _ in range(needed)]
            if sequence.is_new or self.resend:
                rows.append(self.row(sequence))
            new_blocks.append(appended)
            sequence.blocks = sequence.blocks + appended
            sequence.is_new = False
            known = sequence.tokens[start:stop]
            token_ids += known + [SAMPLED_LAST] * (num_tokens - len(known))
            samples.append(num_tokens == sequence.num_left)
        batch = ScheduledBatch(
            step_id=self.step_id,
            slots=[sequence.slot for sequence, _ in chunks],
            num_tokens=[num_tokens for _, num_tokens in chunks],
            num_computed=[sequence.num_computed for sequence, _ in chunks],
            samples=samples,
            token_ids=token_ids,
            new_blocks=new_blocks,
            rows=rows,
            swap_out=self.swap_out,
            swap_in=self.swap_in,
            num_decodes=sum(sequence.decodes(num_tokens) for sequence, num_tokens in chunks),
        )
        self.swap_out, self.swap_in = [], []
        self.step_id += 1
        for (sequence, num_tokens), is_sampled in zip(chunks, samples, strict=True):
            sequence.num_computed += num_tokens
            sequence.num_sampled += is_sampled
        sampling = [s for (s, _), is_sampled in zip(chunks, samples, strict=True) if is_sampled]
        self.in_flight.append((sampling, self.runner.launch(batch)))
        while len(self.in_flight) >= self.depth:
            self.collect()

    def row(self, sequence: Sequence) -> SlotRow:
        return SlotRow(
            slot=sequence.slot,
            prompt_len=len(sequence.prompt),
            block_ids=list(sequence.blocks),
            sampling=sequence.sampling,
            history=list(sequence.tokens),
        )

    def collect(self) -> None:
        sampling, pending = self.in_flight.pop(0)
        output = pending.result()
        self.outputs.append(output)
        assert len(output.token_ids) == len(sampling)
        for sequence, token_id in zip(sampling, output.token_ids, strict=True):
            sequence.tokens.append(token_id)

    def leave(self, sequence: Sequence) -> None:
        """Free its slot and blocks, with nothing of it in flight."""
        self.free_slots.append(sequence.slot)
        random.shuffle(self.free_slots)
        self.free_blocks = sequence.blocks + self.free_blocks
        sequence.blocks = []
        sequence.is_new = True

    def preempt(self, sequence: Sequence) -> None:
        while self.in_flight:
            self.collect()
        if random.random() < 0.5 and len(sequence.blocks) <= len(self.free_host_blocks):
            sequence.host_blocks = [self.free_host_blocks.pop() for _ in sequence.blocks]
            self.swap_out += list(zip(sequence.blocks, sequence.host_blocks, strict=True))
        else:
            sequence.num_computed = 0
        self.leave(sequence)

    def resume(self, sequence: Sequence) -> None:
        if sequence.host_blocks:
            sequence.blocks = [self.free_blocks.pop() for _ in sequence.host_blocks]
            self.swap_in += list(zip(sequence.host_blocks, sequence.blocks, strict=True))
            self.free_host_blocks += sequence.host_blocks
            sequence.host_blocks = []

    def run(self, sequence: Sequence, chunk: int = 10**6) -> list[int]:
        """One request alone, to its end."""
        while not sequence.is_done:
            self.step([(sequence, min(chunk, sequence.num_left))])
        while self.in_flight:
            self.collect()
        self.leave(sequence)
        return sequence.tokens[len(sequence.prompt) :]


def plain_loop(prompt: list[int], num_output: int, sampling: SamplingRow) -> list[int]:
    """The same tokens by recomputing everything for each of them."""
    output: list[int] = []
    for _ in range(num_output):
        logits = MODEL.recompute(prompt + output)[-1].tolist()
        output.append(reference_token(logits, prompt, output, sampling))
    return output


def random_prompt(length: int) -> list[int]:
    return [random.randrange(VOCAB_SIZE) for _ in range(length)]
