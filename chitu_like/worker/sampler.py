"""Logits to token ids: each processor runs only on the rows that asked for it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chitu_like.core.batch import ScheduledBatch
from chitu_like.ops.draw import draw_tokens, draw_tokens_op, make_sound
from chitu_like.ops.sampling import apply_penalties
from chitu_like.ops.upload import upload
from chitu_like.worker.logprobs import RowLogprobs, compute_logprobs
from chitu_like.worker.slots import Slots

EDITED_AT_ONCE = 64
"""Rows: penalties hold eight float32 copies of the logits that they are applied to."""


@dataclass(frozen=True, kw_only=True)
class SampledRows:
    """Who samples in a batch, on the host.

    Attributes:
        slots: [num_samples] int64.
        output_positions: [num_samples] int64; 0 for a request's first output token.
    """

    slots: NDArray[np.int64]
    output_positions: NDArray[np.int64]

    @classmethod
    def of(cls, batch: ScheduledBatch, slots: Slots) -> SampledRows:
        """The requests whose last token's logits are sampled; `slots` knows their prompts."""
        samples = np.array(batch.samples, np.bool_)
        rows = np.array(batch.slots, np.int64)[samples]
        num_tokens = np.array(batch.num_computed, np.int64) + np.array(batch.num_tokens, np.int64)
        return cls(slots=rows, output_positions=num_tokens[samples] - slots.prompt_lens[rows])


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """What was drawn, still on the device.

    Attributes:
        token_ids: [num_samples] int64.
        is_unsound: [num_samples] bool: the model gave NaN or infinity as its best logit.
        logprob_rows: samples that asked for log-probabilities, on the host.
        logprobs: of those rows; None where there are none.
    """

    token_ids: Tensor
    is_unsound: Tensor
    logprob_rows: NDArray[np.int64]
    logprobs: RowLogprobs | None


class Sampler:
    """Draws the tokens of a batch and notes them in the mirror of the rows.

    The order is: penalties, logit bias, tokens banned by min_tokens; log-probabilities are taken
    here; then greedy rows take the best token (of equals the first), and the others divide by the
    temperature, apply top_k, top_p and min_p, and add the noise of their seed and position.

    A NaN among the logits counts as less than any number and an infinity as a large one, so an
    unsound row spoils neither its batch nor the process; `Sampled.is_unsound` tells.

    Args:
        device: of the logits.
        op_impl: kind of implementation of what draws (infer.op_impl).

    Attributes:
        is_capturable: whether `draw` may be captured in a CUDA graph: torch's own looks at the host.
    """

    def __init__(self, device: torch.device, op_impl: str = "auto") -> None:
        self._draw = draw_tokens_op.resolve(device, torch.float32, op_impl)
        self.is_capturable = self._draw is not draw_tokens

    @staticmethod
    def is_simple(rows: SampledRows, slots: Slots) -> bool:
        """Whether `draw` is all that these rows need: no edited logits, no log-probabilities."""
        table, who = slots.sampling, rows.slots
        return not (table.edits_logits[who].any() or (table.num_logprobs[who] >= 0).any())

    def draw(
        self,
        logits: Tensor,
        slots: Tensor,
        output_positions: Tensor,
        params: Tensor,
        last_sampled: Tensor,
    ) -> Sampled:
        """Draw one token for each row of a simple batch.

        Args:
            logits: [num_rows, vocab_size], any float dtype, not modified.
            slots: [num_rows] int32 or int64.
            output_positions: [num_rows] int32 or int64.
            params: [num_slots, NUM_PARAMS] int32, see ops/draw.py; of DeviceSampling.
            last_sampled: [num_slots] int64; WRITTEN at `slots`.
        """
        token_ids, is_unsound = self._draw(logits, params, slots, output_positions, last_sampled)
        return Sampled(
            token_ids=token_ids,
            is_unsound=is_unsound,
            logprob_rows=np.zeros(0, np.int64),
            logprobs=None,
        )

    def sample(self, logits: Tensor, rows: SampledRows, slots: Slots) -> Sampled:
        """Draw one token for each row, whatever it asks for.

        Args:
            logits: [num_samples, vocab_size], any float dtype; may be overwritten.
            rows: who samples.
            slots: parameters are read; counts and last_sampled are updated.
        """
        device = logits.device
        # As recorded steps have them, so that the same kernels draw.
        drawn = np.stack((rows.slots, rows.output_positions)).astype(np.int32)
        who, positions = upload(drawn, device)
        params = slots.device_sampling.params
        if self.is_simple(rows, slots):
            return self.draw(logits, who, positions, params, slots.last_sampled)
        is_unsound = ~logits.amax(dim=-1).isfinite()
        if device.type != "cpu" or is_unsound.any():  # elsewhere looking means waiting
            logits = make_sound(logits)
        if (edited := np.flatnonzero(slots.sampling.edits_logits[rows.slots])).size:
            logits = logits.float()
            for start in range(0, edited.size, EDITED_AT_ONCE):
                some = edited[start : start + EDITED_AT_ONCE]
                index = upload(some, device)
                logits[index] = self._edit(logits[index], _take(rows, some), slots)
        sampled = self.draw(logits, who, positions, params, slots.last_sampled)
        _count(sampled.token_ids, rows, slots)
        logprob_rows = np.flatnonzero(slots.sampling.num_logprobs[rows.slots] >= 0)
        return replace(
            sampled,
            is_unsound=is_unsound,
            logprob_rows=logprob_rows,
            logprobs=_logprobs(logits, sampled.token_ids, rows, logprob_rows, slots),
        )

    def _edit(self, logits: Tensor, rows: SampledRows, slots: Slots) -> Tensor:
        """Penalties, then bias, then bans; [num_rows, vocab_size] float32, may be overwritten."""
        if (counted := np.flatnonzero(slots.token_counts.is_counted(rows.slots))).size:
            index = upload(counted, logits.device)
            table, who = slots.sampling, rows.slots[counted]
            logits[index] = apply_penalties(
                logits[index],
                *slots.token_counts.of(who),
                upload(table.repetition_penalty[who], logits.device),
                upload(table.presence_penalty[who], logits.device),
                upload(table.frequency_penalty[who], logits.device),
            )
        _add_bias_(logits, rows, slots)
        _ban_stop_ids_(logits, rows, slots)
        return logits


def _count(token_ids: Tensor, rows: SampledRows, slots: Slots) -> None:
    if (counted := np.flatnonzero(slots.token_counts.is_counted(rows.slots))).size:
        index = upload(counted, token_ids.device)
        slots.token_counts.add(rows.slots[counted], token_ids[index])


def _logprobs(
    logits: Tensor,
    token_ids: Tensor,
    rows: SampledRows,
    logprob_rows: NDArray[np.int64],
    slots: Slots,
) -> RowLogprobs | None:
    if not logprob_rows.size:
        return None
    index = upload(logprob_rows, logits.device)
    num_top = slots.sampling.num_logprobs[rows.slots[logprob_rows]].tolist()
    tensors = compute_logprobs(logits[index], token_ids[index], max(num_top))
    return RowLogprobs(tensors=tensors, num_top=num_top)


def _take(rows: SampledRows, index: NDArray[np.int64]) -> SampledRows:
    return SampledRows(slots=rows.slots[index], output_positions=rows.output_positions[index])


def _add_bias_(logits: Tensor, rows: SampledRows, slots: Slots) -> None:
    biases = slots.sampling.logit_bias
    entries = [
        (row, *biases[slot]) for row, slot in enumerate(rows.slots.tolist()) if slot in biases
    ]
    if not entries:
        return
    index = np.concatenate([np.full(len(ids), row) for row, ids, _ in entries])
    token_ids = np.concatenate([ids for _, ids, _ in entries])
    values = np.concatenate([values for _, _, values in entries])
    where = (upload(index, logits.device), upload(token_ids, logits.device))
    logits[where] += upload(values, logits.device)  # a token stands once in a row's bias


def _ban_stop_ids_(logits: Tensor, rows: SampledRows, slots: Slots) -> None:
    stop_ids = slots.sampling.stop_ids
    is_early = rows.output_positions < slots.sampling.min_tokens[rows.slots]
    entries = [(row, stop_ids[int(rows.slots[row])]) for row in np.flatnonzero(is_early).tolist()]
    if not entries:
        return
    index = np.concatenate([np.full(len(ids), row) for row, ids in entries])
    token_ids = np.concatenate([ids for _, ids in entries])
    where = (upload(index, logits.device), upload(token_ids, logits.device))
    logits.index_put_(where, logits.new_full((), -torch.inf))  # assigning a number would wait
