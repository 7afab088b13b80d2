"""Steps with prompts in them, recorded around attention for each padded number of tokens.

A chunk of a prompt keeps a GPU busy for longer than a decode, and still, up to some hundred tokens, for
less time than a host needs to launch each layer's kernels. Between two attentions a model looks at
tokens alone: whose they are is attention's matter. So the layers are recorded in pieces, from one
attention to the next, and attention is called between them: for decodes recorded as well
(decode_attention.py), for chunks planned for the requests as they are, without the tokens that pad the
step. Those carry numbers from piece to piece that nobody reads, and store keys and values in a block
that belongs to nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from chitu_like.attention.base import Attend, ForwardBatch, GraphBackend, LayerKVCache, Seam
from chitu_like.core.batch import ScheduledBatch
from chitu_like.worker.batch_builder import PaddedInputs
from chitu_like.worker.decode_attention import DecodeAttention
from chitu_like.worker.model import Model
from chitu_like.worker.options import RunnerOptions
from chitu_like.worker.recording import Cut, Recorder, Recording
from chitu_like.worker.slots import Slots

MOST_TOKENS = 8192
LAUNCH_BOUND = 170e9
"""Tokens times parameters of a layer up to which launching a layer is what takes time: 0.55 ms of host
at 600 TFLOP/s, about what an H200's took. Beyond, padding would cost more than recording gains."""

_STEPS = (
    *(16, 32, 64, 128, 192, 256, 320, 384, 448, 512, 576, 640, 704, 768, 896, 1024),
    *(1280, 1536, 1792, 2048, 2560, 3072, 3584, 4096, 5120, 6144, 7168),
)


def token_sizes(most: int) -> list[int]:
    """Numbers of tokens that steps are recorded for, in order; the last is `most`.

    From 256 on a step is at most a quarter larger than it need be; below, the weights that are read
    outweigh its tokens.
    """
    return [size for size in _STEPS if size < most] + [most]


def most_tokens(options: RunnerOptions) -> int:
    """Tokens up to which recording a step pays, the same on all ranks of a stage."""
    parameters = options.spec.layer_parameters() / options.parallel.tp_size
    bound = max(64, int(LAUNCH_BOUND / parameters) // 64 * 64)
    return min(bound, MOST_TOKENS, options.max_num_batched_tokens)


class _Between:
    """Attention, called between recorded pieces.

    Recordings refer to it, and not to whoever holds them: a cycle would keep their memory for a while.

    Args:
        q: [max_reqs, num_heads, head_dim], to which the pieces copy the leading queries.
        out: [most_tokens or more, num_heads, head_dim], which the pieces read.

    Attributes:
        q, out: as given.
        layers: each one's attention, once a step is recorded.
        decodes: of each layer, what attends to the decodes of the latest batch; none without any.
        chunks: the other requests of that batch, planned; None without any.
        tokens: theirs.
    """

    def __init__(self, q: Tensor, out: Tensor) -> None:
        self.q, self.out = q, out
        self.layers: list[Attend] = []
        self.decodes: Sequence[Recording] = ()
        self.chunks: ForwardBatch | None = None
        self.tokens = slice(0)

    def seam(self, cut: Cut, size: int) -> Seam:
        """Of a step of `size` tokens: ends a piece at each layer's attention."""
        self.layers.clear()

        def leave_room(attend: Attend, q: Tensor) -> Tensor:
            leading = self.q[:size]
            leading.copy_(q[: len(leading)])
            self.layers.append(attend)
            cut(partial(self._call, len(self.layers) - 1), q)
            return self.out[:size]

        return leave_room

    def _call(self, layer: int, q: Tensor) -> None:
        if self.decodes:
            self.decodes[layer].replay()
        if self.chunks is not None:
            self.layers[layer](q[self.tokens], self.chunks, self.out[self.tokens])


class MixedSteps:
    """The recorded pieces of a rank's forward.

    Args:
        model: loaded; its layers attend by layers/attention.py, or heed the batch's seam as that does.
        backend: the one that they call.
        options: of the runner.
        slots: with device_tables.
        kv_caches: of the pool, its padding block included.
        padding_block: belongs to nobody.
        recorder: records the pieces.
        sizes: numbers of tokens to record, in order.
        decode_sizes: numbers of decodes in them, likewise.
    """

    def __init__(
        self,
        model: Model,
        backend: GraphBackend,
        options: RunnerOptions,
        slots: Slots,
        kv_caches: dict[int, LayerKVCache],
        *,
        padding_block: int,
        recorder: Recorder,
        sizes: Sequence[int],
        decode_sizes: Sequence[int],
    ) -> None:
        spec, device, dtype = options.attention_spec, options.torch_device, options.torch_dtype
        self._model, self._backend, self._options = model, backend, options
        self._kv_caches, max_reqs = kv_caches, len(slots.num_blocks)
        self._sizes = np.array(sizes, np.int64)
        most = int(self._sizes[-1])
        self._inputs = PaddedInputs(
            packed=torch.zeros(
                PaddedInputs.length(most, max_reqs), dtype=torch.int64, device=device
            ),
            num_tokens=most,
            padding_slot=padding_block * options.block_size,
        )
        hidden_states = (most, options.spec.hidden_size)
        self._received: Tensor | None = None
        if not options.parallel.is_first_stage:
            self._received = torch.zeros(hidden_states, dtype=dtype, device=device)
        # Zeros: pieces compute with rows that no request of a batch wrote, and those must be numbers.
        self._between = _Between(
            *(
                torch.zeros(rows, spec.num_heads, spec.head_dim, dtype=dtype, device=device)
                for rows in (max_reqs, max(most, max_reqs))
            )
        )
        self._out = torch.zeros(hidden_states, dtype=dtype, device=device)
        # The largest first: the others then fit into the memory it took.
        self._recordings = {
            size: self._record(self._inputs_of(size), recorder)
            for size in reversed(self._sizes.tolist())
        }
        self._decodes = DecodeAttention(
            self._between.layers,
            backend,
            options,
            slots,
            kv_caches,
            q=self._between.q,
            out=self._between.out,
            recorder=recorder,
            sizes=decode_sizes,
        )

    def inputs_for(self, num_tokens: int) -> PaddedInputs | None:
        """Where to lay a batch out that `forward` is to compute; None: it has too many tokens."""
        index = int(np.searchsorted(self._sizes, num_tokens))
        return self._inputs_of(int(self._sizes[index])) if index < len(self._sizes) else None

    def forward(
        self,
        batch: ForwardBatch,
        scheduled: ScheduledBatch,
        inputs: PaddedInputs,
        received: Tensor | None,
    ) -> Tensor:
        """What the model's `forward` gives.

        Args:
            batch: laid out in `inputs`; it need not be planned.
            scheduled: whose tensors these are.
            inputs: from `inputs_for`.
            received: [num_tokens, hidden_size] of the stage before; None on the first.

        Returns: [num_tokens, hidden_size]: on the last stage the caller's until the next call, else a
            copy, which may be on its way for longer.
        """
        num_tokens, between, n = len(batch.positions), self._between, batch.num_decodes
        if received is not None:
            assert self._received is not None, "the first stage receives nothing"
            self._received[:num_tokens].copy_(received)
        between.tokens = slice(n, num_tokens)
        between.chunks, between.decodes = None, ()
        if n < num_tokens:
            between.chunks = batch.requests(slice(n, None))
            between.chunks.attn_metadata = self._backend.plan(between.chunks)
        if n:
            between.decodes = self._decodes.begin(scheduled)
        self._recordings[inputs.num_tokens].replay()
        out = self._out[:num_tokens]
        return out if self._options.parallel.is_last_stage else out.clone()

    def _inputs_of(self, size: int) -> PaddedInputs:
        return replace(self._inputs, num_tokens=size)

    def _record(self, inputs: PaddedInputs, recorder: Recorder) -> Recording:
        size = inputs.num_tokens
        input_ids, positions, slot_mapping = by_token = inputs.by_token
        by_token.zero_()
        slot_mapping.fill_(inputs.padding_slot)
        nothing = torch.empty(0, dtype=torch.int32, device=by_token.device)
        batch = ForwardBatch(
            input_ids=input_ids,
            positions=positions,
            slot_mapping=slot_mapping,
            block_tables=nothing.view(0, 0),
            query_lens=[],
            context_lens=[],
            device_context_lens=nothing,
            num_decodes=0,
            logits_indices=nothing.long(),
            kv_caches=self._kv_caches,
        )
        received = None if self._received is None else self._received[:size]

        def work(cut: Cut) -> None:
            # A model may write to what it receives, and a recording must leave it as it was.
            hidden_states = self._model.forward(
                replace(batch, seam=self._between.seam(cut, size)),
                None if received is None else received.clone(),
            )
            self._out[:size].copy_(hidden_states)

        return recorder.record_pieces(work)
