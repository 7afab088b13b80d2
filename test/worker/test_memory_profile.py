"""What a profile run computes; the device's memory is not looked at."""

import pytest
import torch
from tiny_model import TinyModel, tiny_runner
from torch import Tensor

from chitu_like.ops.triton.draw_tiling import DrawTiling, tiling_for
from chitu_like.worker import memory_profile

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
