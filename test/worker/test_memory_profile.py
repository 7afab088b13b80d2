"""What a profile run computes, and what sampling takes; of a device's memory nothing is looked at."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_model import TinyModel, tiny_runner
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from chitu_like.core.batch import ScheduledBatch
from chitu_like.core.output import StepOutput
from chitu_like.ops.triton.draw_tiling import DrawTiling, tiling_for
from chitu_like.worker import memory_profile
from chitu_like.worker.memory import SAMPLING_BYTES
from chitu_like.worker.model_runner import ModelRunner
from chitu_like.worker.profile_batch import make_profile_batch
from chitu_like.worker.sampler import EDITED_AT_ONCE, SampledRows, Sampler
from chitu_like.worker.slots import Slots

Drawn = tuple[DrawTiling, torch.dtype]


class Unsound(TinyModel):
    """Its logits are bfloat16; even on a CPU a sampler that looks at them makes them float32."""

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        logits = super().compute_logits(hidden_states).bfloat16()
        logits[:, 0] = torch.inf
        return logits


@pytest.fixture
def _without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("memory_allocated", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda _device: 0)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _device: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)


@pytest.mark.usefixtures("_without_cuda")
@pytest.mark.parametrize(
    ("max_reqs", "max_num_batched_tokens"), [(1, 8), (5, 64), (8, 64), (9, 64), (70, 140), (90, 66)]
)
def test_a_profile_run_draws_with_every_kernel_that_batches_may_need(
    max_reqs: int, max_num_batched_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = tiny_runner(
        Unsound(), max_reqs=max_reqs, max_num_batched_tokens=max_num_batched_tokens
    )
    drawn: list[Drawn] = []
    draw = runner._sampler._draw

    def note(logits: Tensor, *arguments: Tensor) -> tuple[Tensor, Tensor]:
        drawn.append((tiling_for(len(logits)), logits.dtype))
        return draw(logits, *arguments)

    monkeypatch.setattr(runner._sampler, "_draw", note)
    memory_profile._activation_bytes(runner)
    most = min(max_reqs, max_num_batched_tokens)
    expected = {
        (tiling_for(num_rows), dtype)
        for num_rows in range(1, most + 1)
        for dtype in (torch.bfloat16, torch.float32)
    }
    assert set(drawn) == expected
    assert len(drawn) == len(expected), "each costs a step"


@pytest.mark.usefixtures("_without_cuda")
@pytest.mark.parametrize(
    ("max_reqs", "max_num_batched_tokens"), [(1, 8), (6, 64), (EDITED_AT_ONCE + 1, 140), (90, 66)]
)
def test_a_profile_run_counts_the_tokens_of_all_requests_beside_the_largest_steps(
    max_reqs: int, max_num_batched_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = tiny_runner(max_reqs=max_reqs, max_num_batched_tokens=max_num_batched_tokens)
    steps: list[tuple[int, int]] = []
    num_edited: list[int] = []
    execute, edit = ModelRunner.execute, Sampler._edit

    def note_step(self: ModelRunner, batch: ScheduledBatch) -> StepOutput:
        output = execute(self, batch)
        assert self._slots is not None
        assert self._slots.token_counts._in_prompt.shape[0] == max_reqs
        steps.append((batch.num_reqs, len(batch.token_ids)))
        return output

    def note_rows(self: Sampler, logits: Tensor, rows: SampledRows, slots: Slots) -> Tensor:
        assert slots.token_counts.is_counted(rows.slots).all()
        num_edited.append(len(logits))
        return edit(self, logits, rows, slots)

    monkeypatch.setattr(ModelRunner, "execute", note_step)
    monkeypatch.setattr(Sampler, "_edit", note_rows)
    memory_profile._activation_bytes(runner)
    most = min(max_reqs, max_num_batched_tokens)
    longest = min(max_num_batched_tokens, runner.options.max_seq_len)
    assert (1, longest) in steps
    assert (most, most * min(max_num_batched_tokens // most, longest)) in steps
    assert max(num_edited) == min(most, EDITED_AT_ONCE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("num_reqs", [1, EDITED_AT_ONCE, 3 * EDITED_AT_ONCE])
def test_the_plan_of_a_cpu_holds_when_every_request_wants_all_that_there_is(
    num_reqs: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    vocab_size, cpu = 20_000, torch.device("cpu")
    slots = Slots(max_reqs=num_reqs, max_blocks=1, vocab_size=vocab_size, device=cpu)
    batch = make_profile_batch(num_reqs, 1, block_size=4)
    logits = torch.randn(num_reqs, vocab_size).to(dtype)

    def sample() -> None:
        slots.apply(batch)
        Sampler(cpu).sample(logits, SampledRows.of(batch, slots), slots)

    sample_once = peak_bytes(sample, tmp_path / "trace.json") / (num_reqs * vocab_size)
    assert 0.8 * SAMPLING_BYTES < sample_once <= SAMPLING_BYTES


def peak_bytes(work: Callable[[], None], trace: Path) -> int:
    """The most that torch holds on the host at once, of what `work` allocates."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recording:
        work()
    recording.export_chrome_trace(str(trace))
    events = json.loads(trace.read_text())["traceEvents"]
    changes = [event["args"]["Bytes"] for event in events if event["name"] == "[memory]"]
    return int(np.cumsum(changes).max())
