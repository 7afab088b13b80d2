"""infer.deterministic over a tiny model whose every op is Triton's; test_kernels.py runs this file.

By hand: `TRITON_INTERPRET=1 pytest test/worker/deterministic_cases.py` on a CPU, and without the variable
on a CUDA device, where the same cases run compiled.
"""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_driver import Driver, Sequence, random_prompt
from tiny_model import (
    MAX_REQS,
    NUM_BLOCKS,
    NUM_HOST_BLOCKS,
    Again,
    Rerun,
    sampling_row,
    tiny_options,
)
from torch import Tensor

from chitu_like.attention.base import ForwardBatch
from chitu_like.attention.triton import TritonBackend
from chitu_like.models.base import Model
from chitu_like.models.build import build_model
from chitu_like.ops.attention_tiles import Tile, Tiling
from chitu_like.ops.triton import activation, draw, embedding, kv_store, norm, rope_store, rotary
from chitu_like.ops.triton.paged_attention import is_interpreted
from chitu_like.quantization.base import Unquantized
from chitu_like.worker.decode_steps import DecodeSteps
from chitu_like.worker.model_runner import ModelRunner
from chitu_like.worker.recording import CudaGraphRecorder, Cut, Recorder

TWINS = (
    activation,
    draw,
    embedding,
    kv_store,
    norm,
    rope_store,
    rotary,
)  # registered when imported
DEVICE = "cpu" if is_interpreted() else "cuda"
TILE = Tile(rows=16, keys=16, num_warps=4, num_stages=2)
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2]  # its answer crosses a split
NUM_OUTPUT = 5


@pytest.fixture(scope="module", autouse=True)
def _rows_multiplied_alike() -> Iterator[None]:
    """The interpreter multiplies tiles with numpy, whose bits depend on where in a tile a row stands."""
    matmul = np.matmul

    def multiply(a: NDArray[np.float32], b: NDArray[np.float32], dtype: str) -> NDArray[np.float32]:
        return matmul(a.astype(np.float64), b.astype(np.float64)).astype(dtype)

    with pytest.MonkeyPatch.context() as patch:
        if is_interpreted():
            patch.setattr(np, "matmul", multiply)
        yield


class Listening:
    """A model that keeps the logits it computes."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.logits = torch.empty(0)

    def forward(self, batch: ForwardBatch, hidden_states: Tensor | None = None) -> Tensor:
        return self._model.forward(batch, hidden_states)

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        self.logits = self._model.compute_logits(hidden_states)
        return self.logits

    def __getattr__(self, name: str) -> object:
        return getattr(self._model, name)


class AtOnce(Rerun):
    """Calls recorded pieces again, with what comes between them: a tape hears nothing of Triton's."""

    def record_pieces(self, work: Callable[[Cut], None]) -> Again:
        work(lambda call, x: None)  # whoever records learns from it what is called between pieces
        return Again(partial(work, lambda call, x: call(x)))


def make_runner(make_recorder: Callable[[], Recorder] | None = None) -> ModelRunner:
    """Launches each step, kernel by kernel, unless there is something to record it with."""
    options = tiny_options(
        attn_type="triton",
        op_impl="triton",
        deterministic=True,
        device=DEVICE,
        max_num_batched_tokens=64,
    )
    tiling = Tiling(decode=TILE, prefill=TILE)
    spec = options.attention_spec
    backend = TritonBackend(spec, tiling=tiling, num_programs=1, split_tokens=TILE.keys)
    model = build_model(
        options.spec,
        backend,
        options.torch_dtype,
        options.torch_device,
        quant_method=Unquantized(is_invariant=True),
        op_impl=options.op_impl,
    )
    runner = ModelRunner(options, Listening(model), backend, None, make_recorder)  # type: ignore[arg-type]
    runner.load(load_format="dummy", seed=5)
    return runner


@pytest.fixture(scope="module")
def runner() -> ModelRunner:
    return make_runner()


@pytest.fixture(scope="module")
def recording_runner() -> ModelRunner:
    if is_interpreted():
        return make_runner(AtOnce)
    return make_runner(partial(CudaGraphRecorder, torch.device(DEVICE)))


def logits_of(runner: ModelRunner, *, num_reqs: int, chunk: int) -> Tensor:
    """What a request's tokens are drawn from: [NUM_OUTPUT, vocab_size].

    Args:
        runner: computes.
        num_reqs: requests of each step in which it decodes; one of the others joins in each step.
        chunk: tokens of its prompt in a step.
    """
    runner.allocate(NUM_BLOCKS, num_host_blocks=NUM_HOST_BLOCKS)
    driver, model = Driver(runner), runner._model
    assert isinstance(model, Listening)
    watched = Sequence(PROMPT, NUM_OUTPUT, sampling_row(seed=7, temperature=0.9, top_p=0.9))
    row = sampling_row(seed=8, temperature=2.0)
    others = [Sequence(random_prompt(3 * i + 1), 40, row) for i in range(num_reqs - 1)]
    logits = []
    while not watched.is_done:
        running = [other for other in others if not other.is_new]
        running += [other for other in others if other.is_new][:1]
        mine = (watched, min(chunk, watched.num_left))
        chunks = [mine, *((other, other.num_left) for other in running)]
        decodes = [other.decodes(num_tokens) for other, num_tokens in chunks]
        samples = mine[1] == watched.num_left
        driver.step(chunks)
        if samples:
            logits.append(model.logits[0 if decodes[0] else sum(decodes)].clone())
    return torch.stack(logits)


@pytest.fixture(scope="module")
def alone(runner: ModelRunner, _rows_multiplied_alike: None) -> Tensor:
    """The request by itself, its prompt in one piece."""
    return logits_of(runner, num_reqs=1, chunk=len(PROMPT))


@pytest.mark.parametrize(
    ("num_reqs", "chunk"),
    [
        pytest.param(1, 1, marks=pytest.mark.slow),
        (3, 4),
        pytest.param(MAX_REQS, len(PROMPT), marks=pytest.mark.slow),
        pytest.param(3, 1, marks=pytest.mark.slow),
        pytest.param(MAX_REQS, 1, marks=pytest.mark.slow),
        pytest.param(MAX_REQS, 4, marks=pytest.mark.slow),
    ],
)
def test_a_request_has_the_same_bits_in_every_company(
    runner: ModelRunner, alone: Tensor, num_reqs: int, chunk: int
) -> None:
    assert alone.isfinite().all()
    assert len(alone.unique(dim=0)) == NUM_OUTPUT
    assert torch.equal(logits_of(runner, num_reqs=num_reqs, chunk=chunk), alone)


@pytest.mark.parametrize(
    ("num_reqs", "chunk"),
    [(2, len(PROMPT)), pytest.param(MAX_REQS, 4, marks=pytest.mark.slow)],
)
def test_what_pads_a_recorded_step_changes_no_bit(
    recording_runner: ModelRunner,
    alone: Tensor,
    monkeypatch: pytest.MonkeyPatch,
    num_reqs: int,
    chunk: int,
) -> None:
    """Decodes too: a step of theirs computes its logits where nobody listens."""
    monkeypatch.setattr(DecodeSteps, "takes", lambda _steps, _batch: False)
    assert torch.equal(logits_of(recording_runner, num_reqs=num_reqs, chunk=chunk), alone)
