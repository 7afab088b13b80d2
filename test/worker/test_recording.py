"""Work recorded in pieces on a CUDA device repeats itself, and takes the memory of one piece."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from chitu_like.worker.recording import CudaGraphRecorder, Cut, Recording

pytestmark = pytest.mark.gpu

NUM_CUTS, WIDTH = 6, 64


class Pieces:
    """`num_cuts` times: a product, of which a part with strides goes to a cut that adds what is now there."""

    def __init__(
        self, recorder: CudaGraphRecorder, num_rows: int, num_cuts: int = NUM_CUTS
    ) -> None:
        self.x = torch.zeros(num_rows, WIDTH, device="cuda", dtype=torch.bfloat16)
        self.between = torch.zeros(num_rows, WIDTH, device="cuda", dtype=torch.bfloat16)
        self.out = torch.zeros_like(self.x)
        self.weight = torch.randn(WIDTH, 2 * WIDTH, device="cuda", dtype=torch.bfloat16) / WIDTH
        self.added, self.num_calls, self.num_cuts = 0.0, 0, num_cuts
        self.recording: Recording = recorder.record_pieces(self.work)

    def work(self, cut: Cut) -> None:
        x = self.x.clone()
        for _ in range(self.num_cuts):
            cut(self.call, (x @ self.weight).view(-1, 2, WIDTH)[:, 1])
            x = x + self.between
        self.out.copy_(x)

    def call(self, part: Tensor) -> None:
        self.num_calls += 1
        torch.add(part, self.added, out=self.between)

    def replay(self, x: Tensor, added: float) -> None:
        self.x.copy_(x)
        self.added, self.num_calls = added, 0
        self.recording.replay()

    def expected(self, x: Tensor, added: float) -> Tensor:
        for _ in range(self.num_cuts):
            x = x + ((x @ self.weight)[:, WIDTH:] + added)
        return x


@torch.inference_mode()
def test_pieces_repeat_and_calls_are_made_anew() -> None:
    recorder = CudaGraphRecorder(torch.device("cuda", 0))
    large, small = Pieces(recorder, 48), Pieces(recorder, 16)
    assert large.num_calls == small.num_calls == 0
    for added in (0.0, 1.0, -3.0):
        for pieces in (small, large, small):
            x = torch.randn_like(pieces.x)
            pieces.replay(x, added)
            assert pieces.num_calls == NUM_CUTS
            assert torch.equal(pieces.out, pieces.expected(x, added))


@torch.inference_mode()
def test_what_runs_between_pieces_leaves_theirs_alone() -> None:
    recorder = CudaGraphRecorder(torch.device("cuda", 0))
    pieces = Pieces(recorder, 48)
    added = torch.randn(48, WIDTH, device="cuda", dtype=torch.bfloat16)
    seen = torch.zeros_like(added)

    def disturb(times: int) -> None:
        """Takes much memory on the way."""
        for i in range(64):
            seen.copy_(torch.full_like(added, float(i)) + times)

    recordings = recorder.record_each([lambda n=n: disturb(n) for n in range(2)])  # type: ignore[misc]

    def call(part: Tensor) -> None:
        recordings[pieces.num_calls % 2].replay()
        assert seen[0, 0] == 63 + pieces.num_calls % 2
        Pieces.call(pieces, part)

    pieces.call = call  # type: ignore[method-assign]
    pieces.recording = recorder.record_pieces(pieces.work)
    x = torch.randn_like(pieces.x)
    pieces.replay(x, 1.0)
    assert pieces.num_calls == NUM_CUTS
    assert torch.equal(pieces.out, pieces.expected(x, 1.0))


def taken_by(recorder: CudaGraphRecorder, *, num_cuts: int) -> int:
    """Bytes that are not given back while the recording is there."""
    before = torch.cuda.memory_allocated()
    pieces = Pieces(recorder, 1 << 14, num_cuts)
    taken = torch.cuda.memory_allocated() - before
    del pieces
    return taken


@torch.inference_mode()
def test_cuts_keep_no_memory() -> None:
    recorder = CudaGraphRecorder(torch.device("cuda", 0))
    few = taken_by(recorder, num_cuts=4)
    assert taken_by(recorder, num_cuts=64) <= few + (1 << 20)  # 60 cuts more, of 4 MiB each
