"""The decodes beside a prompt: each layer's attention over them, recorded for padded numbers of them.

The layers of such a step are recorded in pieces (mixed_steps.py), and the chunks between them are
attended to as they come. Decodes can be recorded here as well: what is computed for them depends on
their padded number alone. A layer's kernels are then one launch instead of several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor

from chitu_like.attention.base import Attend, AttentionMetadata, GraphBackend, LayerKVCache
from chitu_like.core.batch import ScheduledBatch
from chitu_like.ops.decode_inputs import DecodeInputs
from chitu_like.worker.options import RunnerOptions
from chitu_like.worker.padded_decodes import PaddedDecodes
from chitu_like.worker.recording import Recorder, Recording
from chitu_like.worker.slots import Slots

_SIZES = (4, 16, 32, 64, 96, 128, 192, 256, 384, 512)


def decode_sizes(max_reqs: int) -> list[int]:
    """Numbers of decodes that attention is recorded for, in order; the last is `max_reqs`.

    Padding costs little here, a token to attend to a request, but a padded number is also cut into
    fewer splits than its requests alone would be.
    """
    return [size for size in _SIZES if size < max_reqs] + [max_reqs]


@dataclass(frozen=True, kw_only=True)
class _Size:
    """What is recorded for a padded number of decodes.

    Attributes:
        decodes: the recordings' own.
        metadata: that they read.
        layers: each one's attention.
    """

    decodes: PaddedDecodes
    metadata: AttentionMetadata
    layers: Sequence[Recording]


class DecodeAttention:
    """The recorded attention of a rank's layers over decodes.

    Args:
        layers: each one's attention, in order.
        backend: the one that they call.
        options: of the runner.
        slots: with device_tables.
        kv_caches: of the pool, its padding block included.
        q: [max_reqs, num_heads, head_dim], where a layer's queries are.
        out: likewise, where its output goes.
        recorder: records it.
        sizes: numbers of decodes to record, in order.
    """

    def __init__(
        self,
        layers: Sequence[Attend],
        backend: GraphBackend,
        options: RunnerOptions,
        slots: Slots,
        kv_caches: dict[int, LayerKVCache],
        *,
        q: Tensor,
        out: Tensor,
        recorder: Recorder,
        sizes: Sequence[int],
    ) -> None:
        self._layers, self._backend, self._options = layers, backend, options
        self._slots, self._kv_caches, self._q, self._out = slots, kv_caches, q, out
        self._sizes = np.array(sizes, np.int64)
        most, max_blocks = int(self._sizes[-1]), slots.block_tables.shape[1]
        self._inputs = DecodeInputs.empty(most, max_blocks, options.torch_device)
        # The largest first: the others then fit into the memory it took.
        self._recorded = {
            size: self._record(size, recorder) for size in reversed(self._sizes.tolist())
        }

    def begin(self, batch: ScheduledBatch) -> Sequence[Recording]:
        """Lay the leading decodes of a batch out.

        Args:
            batch: with decodes; `Slots` has already taken it in.

        Returns: of each layer what attends to them, from and to where `q` and `out` are. Behind the
            decodes it writes to rows of `out` that pad them, which are others' to overwrite.
        """
        n = batch.num_decodes
        size = self._recorded[int(self._sizes[np.searchsorted(self._sizes, n)])]
        written = size.decodes.write(
            batch.slots[:n], batch.num_computed[:n], batch.token_ids[:n], [0] * n
        )
        self._backend.replan(size.metadata, written)
        size.decodes.gather()
        self._backend.prepare(size.metadata)
        return size.layers

    def _record(self, size: int, recorder: Recorder) -> _Size:
        decodes = PaddedDecodes(
            size, self._inputs.head(size), self._slots, self._kv_caches, self._options
        )
        batch = decodes.batch
        batch.attn_metadata = metadata = self._backend.plan_capture(batch)
        self._backend.prepare(metadata)
        layers = recorder.record_each(
            [partial(attend, self._q[:size], batch, self._out[:size]) for attend in self._layers]
        )
        return _Size(decodes=decodes, metadata=metadata, layers=layers)
