"""The fixed workloads by which engines are compared: same token ids, all greedy, end-of-text ignored.

Three parts, each request's prompt drawn once from one stream of random numbers:

- `nano`: 256 requests, prompts of 100 to 1024 tokens, answers of 100 to 1024, all at once
  (nano-vllm's benchmark). Output tokens/s.
- `steps`: B requests of 1024 tokens with 1 and with 128 tokens out. Prefill tokens/s from the first;
  from the difference the time of a decode step.
- `forwards`: SwiftLLM's single forwards: B prompts of L tokens, and a decode step behind them.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from chitu_like.bench.engine_run import EngineRun
from chitu_like.bench.model_floor import ModelFloor
from chitu_like.bench.random_prompts import MAX_TOKEN_ID

FIRST_ID = 5  # ids at both ends of a vocabulary are special tokens of some models
FORWARD_STEPS = 32
REPEATS = 3


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Sizes of the three parts; the defaults are what published tables were measured with.

    Attributes:
        nano_requests, nano_lengths: how many, and from where to where their lengths lie.
        batches: of `steps`.
        prompt_len, output_len: of `steps`.
        forwards: (batch, prompt tokens).
    """

    nano_requests: int = 256
    nano_lengths: tuple[int, int] = (100, 1024)
    batches: tuple[int, ...] = (1, 8, 32, 128, 256)
    prompt_len: int = 1024
    output_len: int = 128
    forwards: tuple[tuple[int, int], ...] = ((128, 128), (32, 512), (8, 2048), (2, 4096))


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Requests to be answered at once."""

    prompts: list[list[int]]
    output_lens: list[int]

    def with_output(self, output_len: int) -> Workload:
        """The same prompts, so many tokens out of each."""
        return Workload(prompts=self.prompts, output_lens=[output_len] * len(self.prompts))


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number that engines are compared by.

    Attributes:
        name: the same for every engine.
        value: as the name's unit says: milliseconds or tokens/s.
        floor: what the device's measured rates allow at best, or None.
    """

    name: str
    value: float
    floor: float | None = None


class Workloads:
    """The requests of each part. All parts are drawn, so that leaving one out changes no other.

    Args:
        suite: the sizes.
        vocab_size: of the model.
    """

    def __init__(self, suite: Suite, vocab_size: int) -> None:
        rng, high = random.Random(0), min(vocab_size, MAX_TOKEN_ID) - FIRST_ID

        def prompt(length: int) -> list[int]:
            return [rng.randint(FIRST_ID, high) for _ in range(length)]

        nano = [
            (prompt(rng.randint(*suite.nano_lengths)), rng.randint(*suite.nano_lengths))
            for _ in range(suite.nano_requests)
        ]
        self.nano = Workload(prompts=[p for p, _ in nano], output_lens=[n for _, n in nano])
        self.steps = {
            batch: Workload(
                prompts=[prompt(suite.prompt_len) for _ in range(batch)],
                output_lens=[suite.output_len] * batch,
            )
            for batch in suite.batches
        }
        self.forwards = {
            (batch, length): Workload(
                prompts=[prompt(length) for _ in range(batch)], output_lens=[1] * batch
            )
            for batch, length in suite.forwards
        }


class SuiteRun:
    """Measures an engine.

    Args:
        engine_run: of the engine.
        suite: the sizes.
        vocab_size: of the model.
        floor: of the model on this device.
        batches: of `steps`, to be measured; None: all that the suite has.
    """

    def __init__(
        self,
        engine_run: EngineRun,
        suite: Suite,
        vocab_size: int,
        floor: ModelFloor,
        batches: Sequence[int] | None = None,
    ) -> None:
        self._run = engine_run
        self._suite = suite
        self._floor = floor
        self._batches = suite.batches if batches is None else batches
        self._workloads = Workloads(suite, vocab_size)

    def warm_up(self) -> None:
        """Let kernels be compiled: a small batch of each kind of step."""
        batch = self._batches[min(1, len(self._batches) - 1)]
        self._seconds(self._workloads.steps[batch], repeats=1)

    def check_room(self, parts: Sequence[str]) -> None:
        """Make sure that everything can run. Raises: CapacityError."""
        suite = self._suite
        if "nano" in parts:
            self._run.check_room(1, 2 * suite.nano_lengths[1])
        for batch in self._batches if "steps" in parts else ():
            self._run.check_room(batch, suite.prompt_len + suite.output_len)
        for batch, length in suite.forwards if "forwards" in parts else ():
            self._run.check_room(batch, length + 1 + FORWARD_STEPS)

    def nano(self) -> Iterator[Figure]:
        """The workload's speed."""
        work = self._workloads.nano
        elapsed_s = self._seconds(work, repeats=1)
        yield Figure(name="nano_out_tok_s", value=sum(work.output_lens) / elapsed_s)

    def steps(self) -> Iterator[Figure]:
        """Decode step and prefill by batch."""
        suite, floor = self._suite, self._floor
        for batch in self._batches:
            work = self._workloads.steps[batch]
            first_s = self._seconds(work.with_output(1))
            num_steps = suite.output_len - 1
            step_s = (self._seconds(work) - first_s) / num_steps
            context = suite.prompt_len + suite.output_len // 2
            yield Figure(
                name=f"tpot{batch}_ms",
                value=step_s * 1e3,
                floor=floor.decode_s(batch, context) * 1e3,
            )
            num_tokens = batch * suite.prompt_len
            yield Figure(
                name=f"prefill{batch}_tok_s",
                value=num_tokens / first_s,
                floor=num_tokens / floor.prefill_s(batch, suite.prompt_len),
            )

    def forwards(self) -> Iterator[Figure]:
        """Single forwards."""
        floor = self._floor
        for (batch, length), work in self._workloads.forwards.items():
            first_s = self._seconds(work)
            step_s = (self._seconds(work.with_output(1 + FORWARD_STEPS)) - first_s) / FORWARD_STEPS
            name = f"fwd{batch}x{length}"
            lowest_s = floor.prefill_s(batch, length)
            yield Figure(name=f"{name}_prefill_ms", value=first_s * 1e3, floor=lowest_s * 1e3)
            lowest_s = floor.decode_s(batch, length + FORWARD_STEPS // 2)
            yield Figure(name=f"{name}_decode_ms", value=step_s * 1e3, floor=lowest_s * 1e3)

    def _seconds(self, work: Workload, repeats: int = REPEATS) -> float:
        return statistics.median(
            self._run.outputs(work.prompts, work.output_lens)[0] for _ in range(repeats)
        )
