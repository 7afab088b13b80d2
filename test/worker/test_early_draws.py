"""What is compiled beside loading is what batches need; a fault of the compiler is not lost."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from tiny_model import tiny_runner

from chitu_like.core.errors import CheckpointError
from chitu_like.ops import draw
from chitu_like.ops.triton.draw_tiling import tiling_for
from chitu_like.worker.early_draws import draws_beside
from chitu_like.worker.profile_batch import make_profile_batch
from chitu_like.worker.sampler import Sampler

Drawn = tuple[object, torch.dtype, torch.dtype]


@pytest.fixture
def draw_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., object]], None]:
    """Let a sampler of a CPU draw with what stands for kernels."""

    def use(draws: Callable[..., object]) -> None:
        def init(self: Sampler, *_arguments: object) -> None:
            self._draw, self.is_capturable = draws, True

        monkeypatch.setattr(Sampler, "__init__", init)

    return use


@pytest.mark.parametrize("max_reqs", [1, 5, 70, 300])
def test_every_form_is_drawn_once_and_beside_the_block(
    max_reqs: int, draw_with: Callable[[Callable[..., object]], None]
) -> None:
    drawn: list[Drawn] = []
    is_loading = threading.Event()

    def note(
        logits: torch.Tensor, params: torch.Tensor, slots: torch.Tensor, *others: torch.Tensor
    ) -> object:
        is_loading.wait(10)
        drawn.append((tiling_for(len(logits)), logits.dtype, slots.dtype))
        assert logits.shape[1] == runner.options.spec.vocab_size
        return draw.draw_tokens(logits, params, slots, *others)

    runner = tiny_runner(max_reqs=max_reqs, dtype="bfloat16")
    draw_with(note)
    with draws_beside(runner):
        assert drawn == []
        is_loading.set()
    expected = {
        (tiling_for(num_rows), dtype, torch.int32)
        for num_rows in range(1, max_reqs + 1)
        for dtype in (torch.bfloat16, torch.float32)
    }
    assert set(drawn) == expected
    assert len(drawn) == len(expected)


def test_a_fault_of_the_compiler_ends_the_start_unless_loading_failed_first(
    draw_with: Callable[[Callable[..., object]], None],
) -> None:
    def fail(*_arguments: object) -> None:
        raise RuntimeError("ptxas")

    runner = tiny_runner()
    draw_with(fail)
    with pytest.raises(RuntimeError, match="ptxas"), draws_beside(runner):
        pass
    with pytest.raises(CheckpointError, match="no file"), draws_beside(runner):
        raise CheckpointError("no file")


def test_where_nothing_is_compiled_nothing_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sampler, "draw", None)
    with draws_beside(tiny_runner()):
        pass


@pytest.mark.gpu
def test_behind_it_no_batch_waits_for_a_compiler_to_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pytest.importorskip("triton")
    max_reqs = 70
    runner = tiny_runner(
        device="cuda", dtype="bfloat16", max_reqs=max_reqs, max_num_batched_tokens=140
    )
    with draws_beside(runner):
        pass
    runner.allocate(max_reqs)
    compiled: list[str] = []

    def note(*, src: object, **_others: object) -> None:
        compiled.append(src.name)  # type: ignore[attr-defined]

    monkeypatch.setattr(triton.knobs.compilation, "listener", note)
    for num_reqs in (1, 2, 9, max_reqs):
        for is_simple in (True, False):
            runner.execute(make_profile_batch(num_reqs, 1, 4, is_simple=is_simple))
    kernels = {"scan_kernel", "plan_kernel", "_sift_kernel", "_finish_kernel"}
    assert kernels.isdisjoint(compiled)
