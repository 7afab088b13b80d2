"""Logits to token ids: each processor runs only on the rows that asked for it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chitu_like.core.batch import ScheduledBatch
from chitu_like.ops.sampling import (
    apply_penalties,
    gumbel_argmax_,
    hash_token_ids,
    noise_keys,
    truncation_threshold,
)
from chitu_like.ops.upload import upload
from chitu_like.worker.logprobs import RowLogprobs, compute_logprobs
from chitu_like.worker.slots import Slots

SOUND_LOGIT = 1e30
"""What replaces an infinite logit: finite in float32 after any penalty."""


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
        vocab_size: width of the logits.
        device: of the logits.
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._token_hashes = hash_token_ids(vocab_size, device)

    def sample(self, logits: Tensor, rows: SampledRows, slots: Slots) -> Sampled:
        """Draw one token for each row.

        Args:
            logits: [num_samples, vocab_size], any float dtype; may be overwritten.
            rows: who samples.
            slots: parameters are read; counts and last_sampled are updated.
        """
        best = logits.max(dim=-1)
        is_unsound = ~best.values.isfinite()
        if logits.device.type != "cpu" or is_unsound.any():  # elsewhere looking means waiting
            logits = _make_sound(logits)
            best = logits.max(dim=-1)
        token_ids = best.indices
        table = slots.sampling
        if (edited := np.flatnonzero(table.edits_logits[rows.slots])).size:
            logits = logits.float()
            index = upload(edited, logits.device)
            logits[index] = self._edit(logits[index], _take(rows, edited), slots)
            token_ids[index] = logits[index].max(dim=-1).indices
        if (drawn := np.flatnonzero(~table.is_greedy[rows.slots])).size:
            index = upload(drawn, logits.device)
            chosen = logits if drawn.size == len(logits) else logits[index]
            token_ids[index] = self._draw(chosen, _take(rows, drawn), slots)
        self._note(token_ids, rows, slots)
        logprob_rows = np.flatnonzero(table.num_logprobs[rows.slots] >= 0)
        logprobs = None
        if logprob_rows.size:
            index = upload(logprob_rows, logits.device)
            num_top = table.num_logprobs[rows.slots[logprob_rows]].tolist()
            tensors = compute_logprobs(logits[index], token_ids[index], max(num_top))
            logprobs = RowLogprobs(tensors=tensors, num_top=num_top)
        return Sampled(
            token_ids=token_ids,
            is_unsound=is_unsound,
            logprob_rows=logprob_rows,
            logprobs=logprobs,
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

    def _draw(self, logits: Tensor, rows: SampledRows, slots: Slots) -> Tensor:
        """[num_rows] int64 token ids at the rows' temperatures; `logits` is not modified."""
        table, who = slots.sampling, rows.slots
        scores = logits.float()
        # The best score is 0, so that no temperature, however small, makes one overflow.
        scores = scores - scores.amax(dim=-1, keepdim=True)
        scores /= upload(table.temperature[who], logits.device)[:, None]
        threshold = scores.new_full((len(who),), -torch.inf)
        if (cut := np.flatnonzero(table.truncates[who])).size:
            index = upload(cut, logits.device)
            chosen = scores if cut.size == len(scores) else scores[index]
            cut = who[cut]
            threshold[index] = truncation_threshold(
                chosen, table.top_k[cut], table.top_p[cut], table.min_p[cut]
            )
        key0, key1 = noise_keys(table.seed[who], rows.output_positions)
        return gumbel_argmax_(
            scores,
            threshold,
            self._token_hashes,
            upload(key0, logits.device),
            upload(key1, logits.device),
        )

    def _note(self, token_ids: Tensor, rows: SampledRows, slots: Slots) -> None:
        slots.last_sampled[upload(rows.slots, token_ids.device)] = token_ids
        if (counted := np.flatnonzero(slots.token_counts.is_counted(rows.slots))).size:
            index = upload(counted, token_ids.device)
            slots.token_counts.add(rows.slots[counted], token_ids[index])


def _take(rows: SampledRows, index: NDArray[np.int64]) -> SampledRows:
    return SampledRows(slots=rows.slots[index], output_positions=rows.output_positions[index])


def _make_sound(logits: Tensor) -> Tensor:
    """[num_rows, vocab_size] float32 without NaN or infinity."""
    return torch.nan_to_num(logits.float(), -SOUND_LOGIT, SOUND_LOGIT, -SOUND_LOGIT)


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
