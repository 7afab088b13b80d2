"""From logits to token ids in one op, with the parameters of every slot on the device.

A slot's parameters are one row of a table of bit patterns, [num_slots, 8] int32: 32 bytes, which a
GPU reads at once. Nothing of a batch but its shapes is known when the op is called, so that a CUDA
graph can replay it: who samples, at which position and how, are values on the device.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chitu_like.ops.registry import Op
from chitu_like.ops.sampling import (
    gumbel_argmax_,
    hash_token_ids,
    noise_keys,
    truncation_threshold,
)
from chitu_like.ops.upload import upload

SOUND_LOGIT = 1e30
"""The largest logit, and without its sign the smallest: finite after any penalty or temperature."""

NUM_PARAMS = 8
"""Width of the table: those below, and one that is free."""
SEED_LOW, SEED_HIGH, TEMPERATURE, TOP_K, TOP_P, MIN_P, LOG_MIN_P = range(7)

GREEDY_BELOW = 1e-5
"""Temperatures under this are greedy: the noise would be smaller than a logit's own rounding."""


def pack_params(
    *, seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> NDArray[np.int32]:
    """A slot's row of the table. A temperature under GREEDY_BELOW becomes 0, which is greedy.

    Args:
        seed: 64 bits.
        temperature: at least 0.
        top_k: 0, or vocab_size and more, keeps all.
        top_p: above 0; 1 keeps all.
        min_p: 0 keeps all.

    Returns: [NUM_PARAMS] int32; floats as their bits.
    """
    row = np.zeros(NUM_PARAMS, np.int32)
    row[[SEED_LOW, SEED_HIGH]] = np.array([seed], "<u8").view("<i4")
    row[TOP_K] = top_k
    floats = row.view(np.float32)
    floats[TEMPERATURE] = temperature if temperature >= GREEDY_BELOW else 0.0
    floats[TOP_P] = top_p
    floats[MIN_P] = min_p
    # Here, because a device's own logarithm may differ from the host's in the last bit.
    floats[LOG_MIN_P] = np.log(floats[MIN_P]) if floats[MIN_P] > 0 else -math.inf
    return row


def draw_tokens(
    logits: Tensor, params: Tensor, slots: Tensor, output_positions: Tensor, last_sampled: Tensor
) -> tuple[Tensor, Tensor]:
    """One token a row: greedy, or drawn from what top_k, top_p and min_p keep (ops/sampling.py).

    A greedy row takes its best token, of equals the first. A NaN counts as less than any number
    and an infinity as a large one, so an unsound row spoils neither its batch nor the process.

    The torch reference looks at `params` on the host; its twins never wait for the device. Both
    keep the same tokens unless float32 sums of top_p fall to different sides of a share that
    meets top_p to a rounding, and draw the same unless two sums of score and noise do.

    Args:
        logits: [num_rows, vocab_size], any float dtype, not modified; rows may lie apart.
        params: [num_slots, NUM_PARAMS] int32, rows of `pack_params`.
        slots: [num_rows] int32 or int64, whose parameters each row has. Rows that pad a batch
            share one.
        output_positions: [num_rows], of the same dtype.
        last_sampled: [num_slots] int64; WRITTEN at `slots`.

    Returns: token ids, [num_rows] int64, and whether the model gave NaN or infinity as the best
        logit, [num_rows] bool.
    """
    best = logits.max(dim=-1)
    is_unsound = ~best.values.isfinite()
    if logits.device.type != "cpu" or not (best.values.abs() <= SOUND_LOGIT).all():
        logits = make_sound(logits)
        best = logits.max(dim=-1)
    token_ids = best.indices
    rows = params[slots].cpu().numpy()
    is_drawn = rows.view(np.float32)[:, TEMPERATURE] > 0
    if (drawn := np.flatnonzero(is_drawn)).size:
        index = upload(drawn, logits.device)
        chosen = logits if drawn.size == len(logits) else logits[index]
        token_ids[index] = _draw(chosen, rows[drawn], output_positions[index].cpu().numpy())
    last_sampled[slots] = token_ids
    return token_ids, is_unsound


draw_tokens_op = Op("draw_tokens", draw_tokens)


def make_sound(logits: Tensor) -> Tensor:
    """[num_rows, vocab_size] float32 within SOUND_LOGIT; a NaN is as small as can be."""
    return torch.nan_to_num(logits.float(), -SOUND_LOGIT).clamp_(-SOUND_LOGIT, SOUND_LOGIT)


def _draw(logits: Tensor, params: NDArray[np.int32], positions: NDArray[np.int64]) -> Tensor:
    """[num_rows] int64 token ids at the rows' temperatures; `logits` is not modified."""
    device, floats = logits.device, params.view(np.float32)
    scores = logits.float()
    # The best score is 0, so that no temperature, however small, makes one overflow.
    scores = scores - scores.amax(dim=-1, keepdim=True)
    scores /= upload(floats[:, TEMPERATURE].copy(), device)[:, None]
    threshold = scores.new_full((len(params),), -math.inf)
    truncates = (params[:, TOP_K] > 0) | (floats[:, TOP_P] < 1.0) | (floats[:, MIN_P] > 0.0)
    if (cut := np.flatnonzero(truncates)).size:
        index = upload(cut, device)
        threshold[index] = truncation_threshold(
            scores if cut.size == len(scores) else scores[index],
            params[cut, TOP_K].astype(np.int64),
            floats[cut, TOP_P],
            floats[cut, MIN_P],
        )
    seeds = np.ascontiguousarray(params[:, [SEED_LOW, SEED_HIGH]]).view(np.uint64)[:, 0]
    key0, key1 = (upload(key, device) for key in noise_keys(seeds, positions))
    return gumbel_argmax_(scores, threshold, _token_hashes(logits.shape[1], device), key0, key1)


_token_hashes = functools.lru_cache(maxsize=8)(hash_token_ids)  # one a model; nobody writes to it
