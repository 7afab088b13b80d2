"""This package's own models, recorded: whole, and cut into stages that hand hidden states on."""

from __future__ import annotations

import pytest
import torch
from models.families import twin_of
from tiny_driver import Driver, Sequence
from tiny_model import NUM_BLOCKS, NUM_HOST_BLOCKS, Rerun, sampling_row, tiny_options
from torch import Tensor

from chitu_like.attention.base import AttentionMetadata, AttentionSpec, ForwardBatch, LayerKVCache
from chitu_like.attention.ref import RefBackend
from chitu_like.core.batch import ScheduledBatch
from chitu_like.distributed.collectives import SoloGroup
from chitu_like.distributed.parallel_context import ParallelContext
from chitu_like.models.build import build_model
from chitu_like.worker.model_runner import ModelRunner
from chitu_like.worker.options import RunnerOptions
from chitu_like.worker.pending_step import PendingStep
from chitu_like.worker.pipeline import Stage
from chitu_like.worker.slots import Slots


class Latest(AttentionMetadata):
    """Stays with the recording; what it refers to is planned anew."""

    def __init__(self, planned: AttentionMetadata) -> None:
        self.planned = planned


class RecordableRef:
    """`ref`, which plans on the host, behind the contract of captured decodes."""

    supports_cuda_graph = True

    def __init__(self, spec: AttentionSpec) -> None:
        self._ref = RefBackend(spec)

    @classmethod
    def supports(cls, spec: AttentionSpec) -> str | None:
        return RefBackend.supports(spec)

    def plan(self, batch: ForwardBatch) -> Latest:
        return Latest(self._ref.plan(batch))

    plan_capture = plan

    def replan(self, metadata: AttentionMetadata, batch: ForwardBatch) -> None:
        assert isinstance(metadata, Latest)
        metadata.planned = self._ref.plan(batch)

    def prepare(self, metadata: AttentionMetadata) -> None:
        """Nothing is shared by the layers."""

    def run(
        self,
        q: Tensor,
        kv_cache: LayerKVCache,
        metadata: AttentionMetadata,
        *,
        scale: float,
        window: int | None,
        out: Tensor | None = None,
    ) -> Tensor:
        assert isinstance(metadata, Latest)
        return self._ref.run(q, kv_cache, metadata.planned, scale=scale, window=window, out=out)


class Wire(Stage):
    """Both ends of two stages in one process; the second one's tokens are waited for."""

    def __init__(self) -> None:
        self.sent: list[Tensor] = []
        self.slots: Slots | None = None

    def send(self, hidden_states: Tensor) -> None:
        self.sent.append(hidden_states.clone())

    def receive(self, num_tokens: int) -> Tensor | None:
        received = self.sent.pop()
        assert len(received) == num_tokens
        return received


class FirstEnd(Wire):
    def await_tokens(self, batch: ScheduledBatch, slots: Slots) -> None:
        self.slots = slots

    def receive(self, num_tokens: int) -> Tensor | None:
        return None


class TwoStages:
    """Two runners that look like one."""

    def __init__(self, first: ModelRunner, second: ModelRunner, wire: FirstEnd) -> None:
        self._first, self._second, self._wire = first, second, wire

    def launch(self, batch: ScheduledBatch) -> PendingStep:
        self._first.launch(batch)
        pending = self._second.launch(batch)
        if tokens := pending.result().token_ids:
            assert self._wire.slots is not None
            sampled = [s for s, samples in zip(batch.slots, batch.samples, strict=True) if samples]
            self._wire.slots.last_sampled[torch.tensor(sampled)] = torch.tensor(tokens)
        return pending


def stage_options(pp_rank: int) -> RunnerOptions:
    parallel = ParallelContext(
        pp_rank=pp_rank, pp_size=2, tp=SoloGroup(), layers=range(pp_rank, pp_rank + 1)
    )
    return tiny_options(attn_type="ref", parallel=parallel)


def runner_of(options: RunnerOptions, stage: Stage | None = None, *, records: bool) -> ModelRunner:
    backend = RecordableRef(options.attention_spec)
    model = build_model(
        options.spec,
        backend,
        options.torch_dtype,
        options.torch_device,
        parallel=options.parallel,
    )
    runner = ModelRunner(options, model, backend, stage, Rerun if records else None)
    runner.load(load_format="dummy", seed=5)
    runner.allocate(NUM_BLOCKS, num_host_blocks=NUM_HOST_BLOCKS)
    return runner


def generate(runner: ModelRunner | TwoStages) -> list[list[int]]:
    """Five requests, some drawn, the last ones joining late, one with a prompt of two chunks."""
    torch.manual_seed(0)
    prompts = [[3, 1, 4], [1, 5], [9, 2, 6, 5, 3, 5], [8], [9, 7, 9]]
    sequences = [
        Sequence(prompt, 9 - i, sampling_row(seed=i, temperature=0.8 * (i % 2)))
        for i, prompt in enumerate(prompts)
    ]
    driver = Driver(runner)  # type: ignore[arg-type]
    waiting = list(sequences)
    while any(not sequence.is_done for sequence in sequences):
        running = [s for s in sequences if s not in waiting and not s.is_done]
        newcomers = [waiting.pop(0)] if waiting else []
        driver.step([(s, min(4, s.num_left)) for s in running + newcomers])
    while driver.in_flight:
        driver.collect()
    return [sequence.tokens[len(sequence.prompt) :] for sequence in sequences]


def test_recorded_steps_give_the_tokens_of_launched_ones() -> None:
    options = tiny_options(attn_type="ref")
    launched = generate(runner_of(options, records=False))
    assert [len(tokens) for tokens in launched] == [9, 8, 7, 6, 5]
    assert generate(runner_of(options, records=True)) == launched


@pytest.mark.parametrize("family", ["qwen3", "glm4", "opt", "mistral-window"])
def test_every_family_leaves_room_for_attention(family: str) -> None:
    """All attend by way of the batch's seam, and look at nothing else of a batch but its tokens."""
    spec, _, _ = twin_of(family)
    options = tiny_options(spec=spec, attn_type="ref", max_num_batched_tokens=16)
    assert generate(runner_of(options, records=True)) == generate(runner_of(options, records=False))


def test_recorded_stages_give_the_tokens_of_one() -> None:
    expected = generate(runner_of(tiny_options(attn_type="ref"), records=False))
    first_end, second_end = FirstEnd(), Wire()
    second_end.sent = first_end.sent
    stages = TwoStages(
        runner_of(stage_options(0), first_end, records=True),
        runner_of(stage_options(1), second_end, records=True),
        first_end,
    )
    assert generate(stages) == expected


@pytest.mark.gpu
@pytest.mark.parametrize("attn_type", ["triton"])
def test_graphs_give_the_tokens_of_launched_steps(attn_type: str) -> None:
    launched = generate(runner_of(tiny_options(attn_type="ref"), records=False))
    runner = ModelRunner.build(
        tiny_options(attn_type=attn_type, device="cuda", use_cuda_graph=True)
    )
    runner.load(load_format="dummy", seed=5)
    runner.allocate(NUM_BLOCKS, num_host_blocks=NUM_HOST_BLOCKS)
    assert generate(runner) == launched
