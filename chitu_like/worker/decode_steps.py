"""Steps of decodes alone, recorded once for each padded number of requests and then replayed.

Between two tokens a small model computes for less time than a host needs to launch its kernels one by
one. A recorded step is a single launch: it gathers its inputs from what the slots hold on the device
(ops/decode_inputs.py), runs the model and leaves logits, or hidden states for the next stage, in a
tensor of its own. Drawing from the logits is another, for batches that ask for no more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chitu_like.attention.base import AttentionMetadata, GraphBackend, LayerKVCache
from chitu_like.core.batch import ScheduledBatch
from chitu_like.ops.decode_inputs import DecodeInputs
from chitu_like.worker.model import Model
from chitu_like.worker.options import RunnerOptions
from chitu_like.worker.padded_decodes import PaddedDecodes
from chitu_like.worker.recording import Recorder, Recording
from chitu_like.worker.sampler import Sampled, Sampler
from chitu_like.worker.slots import Slots


def step_sizes(max_reqs: int) -> list[int]:
    """Numbers of requests that steps are recorded for, in order; the last is `max_reqs`.

    Where weights bound a step, up to about 64 requests, a padding row costs next to nothing; beyond,
    a step is at most a quarter larger than it need be, and from 128 on an eighth.
    """
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, max_reqs, 32)]
    return [size for size in sizes if size < max_reqs] + [max_reqs]


@dataclass(frozen=True, kw_only=True)
class _Step:
    """A recorded step.

    Attributes:
        decodes: of the padded size; its tensors are the recording's own.
        metadata: that the recorded attention reads.
        model: everything up to the logits, or to the hidden states for the next stage.
        drawing: from the logits; None where this rank draws nothing.
    """

    decodes: PaddedDecodes
    metadata: AttentionMetadata
    model: Recording
    drawing: _Drawing | None


class _Drawing:
    """Tokens from the logits of a step.

    Args:
        draw: from the same tensors each time.
        recorder: None where `draw` cannot be recorded, and is called.
    """

    def __init__(self, draw: Callable[[], Sampled], recorder: Recorder | None) -> None:
        self._draw = draw
        self._recording = None if recorder is None else recorder.record(self._run)

    def replay(self) -> Sampled:
        """Draw once more; a recording writes to the tensors that it wrote to before."""
        if self._recording is None:
            self._run()
        else:
            self._recording.replay()
        return self._sampled

    def _run(self) -> None:
        self._sampled = self._draw()


class DecodeSteps:
    """The recorded steps of a rank.

    Args:
        model: loaded.
        backend: the one that the model's layers call.
        sampler: draws from the logits; None where another rank does, or another stage.
        options: of the runner.
        slots: with device_tables.
        kv_caches: of the pool, its padding block included.
        recorder: records the steps.
        sizes: numbers of requests to record, in order.
    """

    def __init__(
        self,
        model: Model,
        backend: GraphBackend,
        sampler: Sampler | None,
        options: RunnerOptions,
        slots: Slots,
        kv_caches: dict[int, LayerKVCache],
        recorder: Recorder,
        sizes: Sequence[int],
    ) -> None:
        device, parallel = options.torch_device, options.parallel
        self._model, self._backend, self._options = model, backend, options
        self._sampler = sampler
        self._slots, self._kv_caches = slots, kv_caches
        self._sizes = np.array(sizes, np.int64)
        most = int(self._sizes[-1])
        self._inputs = DecodeInputs.empty(most, slots.block_tables.shape[1], device)
        self._received: Tensor | None = None
        width = options.spec.vocab_size if parallel.is_last_stage else options.spec.hidden_size
        self._out = torch.empty(most, width, dtype=options.torch_dtype, device=device)
        if not parallel.is_first_stage:
            self._received = torch.zeros(
                most, options.spec.hidden_size, dtype=options.torch_dtype, device=device
            )
        self._steps: dict[int, _Step] = {}
        self._record_all(recorder)

    def takes(self, batch: ScheduledBatch) -> bool:
        """Whether `replay` can compute this batch."""
        return batch.num_decodes == batch.num_reqs <= self._sizes[-1] and all(batch.samples)

    def replay(
        self, batch: ScheduledBatch, output_positions: NDArray[np.int64], received: Tensor | None
    ) -> Tensor:
        """Compute a batch that `takes` agreed to.

        Args:
            batch: `slots` has already taken in its rows and blocks.
            output_positions: [num_reqs] of what is sampled.
            received: [num_reqs, hidden_size] of the stage before; None on the first.

        Returns: logits [num_reqs, vocab_size], or on an inner stage hidden states
            [num_reqs, hidden_size]. Logits are the caller's until the next replay; hidden states are
            still on their way to the next stage then, and so a copy.
        """
        num_reqs = batch.num_reqs
        step = self._steps[self.padded(num_reqs)]
        written = step.decodes.write(
            batch.slots, batch.num_computed, batch.token_ids, output_positions
        )
        if received is not None:
            assert self._received is not None, "the first stage receives nothing"
            self._received[:num_reqs].copy_(received)
        self._backend.replan(step.metadata, written)
        step.model.replay()
        out = self._out[:num_reqs]
        return out if self._options.parallel.is_last_stage else out.clone()

    def draw(self, num_reqs: int) -> Sampled:
        """Draw from the logits of the step that was replayed last, which are of a simple batch.

        Returns: tensors on the device, good until the next call, but for the token ids where they
            travel to another stage.
        """
        drawing = self._steps[self.padded(num_reqs)].drawing
        assert drawing is not None, "this rank draws nothing"
        sampled = drawing.replay()
        token_ids = sampled.token_ids[:num_reqs]
        if self._options.parallel.pp_size > 1:
            token_ids = token_ids.clone()
        return replace(sampled, token_ids=token_ids, is_unsound=sampled.is_unsound[:num_reqs])

    def padded(self, num_reqs: int) -> int:
        """The size of the step that computes so many requests."""
        return int(self._sizes[np.searchsorted(self._sizes, num_reqs)])

    def _record_all(self, recorder: Recorder) -> None:
        # The largest first: the others then fit into the memory it took.
        for size in reversed(self._sizes.tolist()):
            self._steps[size] = self._record(size, recorder)

    def _record(self, size: int, recorder: Recorder) -> _Step:
        decodes = PaddedDecodes(
            size, self._inputs.head(size), self._slots, self._kv_caches, self._options
        )
        batch = decodes.batch
        batch.attn_metadata = metadata = self._backend.plan_capture(batch)
        received = None if self._received is None else self._received[:size]

        def work() -> None:
            decodes.gather()
            self._backend.prepare(metadata)
            # A model may write to what it receives, and a recording must leave it as it was.
            hidden_states = self._model.forward(
                batch, None if received is None else received.clone()
            )
            if self._options.parallel.is_last_stage:
                hidden_states = self._model.compute_logits(hidden_states)
            self._out[:size].copy_(hidden_states)

        return _Step(
            decodes=decodes,
            metadata=metadata,
            model=recorder.record(work),
            drawing=self._make_drawing(decodes, recorder),
        )

    def _make_drawing(self, decodes: PaddedDecodes, recorder: Recorder) -> _Drawing | None:
        if (sampler := self._sampler) is None:
            return None
        draw = partial(
            sampler.draw,
            self._out[: len(decodes.slots)],
            decodes.slots,
            decodes.output_positions,
            self._slots.device_sampling.params,
            self._slots.last_sampled,
        )
        return _Drawing(draw, recorder if sampler.is_capturable else None)
