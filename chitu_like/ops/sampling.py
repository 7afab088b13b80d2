"""Drawing tokens: counter-based noise, truncation of the distribution, penalties.

Noise
-----
A token is drawn as argmax(logit / temperature + Gumbel noise) (Gumbel-max trick; Maddison et al.
2014, arXiv:1411.0030). The noise is no stream of random numbers but a function of (seed, output
position, token id), so a request's tokens depend neither on what shares its batch, nor on how the
vocabulary is sharded, nor on the device. All integers are 32 bits wide and wrap around; >> shifts
zeros in::

    mix(x, key=0):  x ^= x >> 16;  x *= 0x7FEB352D;  x ^= x >> 15;  x += key
                    x *= 0x846CA68B;  x ^= x >> 16

    low, high = seed & 0xFFFFFFFF, seed >> 32                  # seed: 64 bits
    key0 = mix(mix(low, high) + position)
    key1 = mix(mix(high ^ 0x9E3779B9, low) ^ key0)
    bits = mix(mix(token_id) ^ key0, key1)
    uniform = ((bits >> 9) + 0.5) * 2**-23                     # exact in float32, inside (0, 1)
    noise = -log(-log(uniform))                                # float32, within (-2.82, 16.64)

With key = 0, mix is lowbias32 of Wellons' search for well-mixed integer hashes (public domain).
23 bits, because 24 and a half would not be exact in float32 and could round to 1.

Truncation
----------
top_k, top_p and min_p all keep the most probable tokens, so together they come to ONE number a
row: the smallest score that is kept. Tokens that tie with it are kept too; so the result depends
on values alone, never on an order of equals that differs between devices and batches. (Scores of
bfloat16 models tie often.)
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chitu_like.ops.upload import upload

MAX_NOISE = 16.64
"""Above -log(-log(1 - 2**-24)), the largest noise there is."""
MIN_NOISE = -2.82
"""Below -log(-log(2**-24)), the smallest."""
NUCLEUS_GUESS = 256
"""Tokens that hold top_p's share for most rows of a trained model. On a CPU they are found in a
third of the time that sorting a vocabulary of 150k takes; the other rows are sorted after all."""
DENSE_SHARE = 8
"""On a CPU, noise for a gathered token costs as much as for this many in a row (68% of 150k
tokens: 47 ms gathered, 12 ms in a row; 16 rows, one thread)."""

_MULTIPLIER_0 = 0x7FEB352D
_MULTIPLIER_1 = 0x846CA68B
_GOLDEN = 0x9E3779B9


def mix(x: NDArray[np.uint32], key: NDArray[np.uint32] | int = 0) -> NDArray[np.uint32]:
    """The hash of the module's docstring, for a few numbers on the host."""
    x = x ^ (x >> np.uint32(16))
    x = x * np.uint32(_MULTIPLIER_0)
    x = x ^ (x >> np.uint32(15))
    x = (x + np.asarray(key, np.uint32)) * np.uint32(_MULTIPLIER_1)
    return x ^ (x >> np.uint32(16))


def noise_keys(
    seeds: NDArray[np.uint64], positions: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """key0 and key1 of each row.

    Args:
        seeds: [num_rows].
        positions: [num_rows] output positions.
    Returns: two [num_rows] arrays of bit patterns; signed because torch computes with int32.
    """
    low = (seeds & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    high = (seeds >> np.uint64(32)).astype(np.uint32)
    key0 = mix(mix(low, high) + positions.astype(np.uint32))
    key1 = mix(mix(high ^ np.uint32(_GOLDEN), low) ^ key0)
    return key0.view(np.int32), key1.view(np.int32)


def hash_token_ids(vocab_size: int, device: torch.device) -> Tensor:
    """mix(token_id) of every token: [vocab_size] int32, the part of the noise made once."""
    return _mix_(torch.arange(vocab_size, dtype=torch.int32, device=device))


def gumbel_noise(token_hashes: Tensor, key0: Tensor, key1: Tensor) -> Tensor:
    """The noise of the module's docstring, float32, in the shape that the arguments broadcast to.

    Args:
        token_hashes: int32, of `hash_token_ids`; not modified.
        key0: int32, of `noise_keys`; already of the full shape or to be broadcast to it.
        key1: like key0.
    """
    bits = _mix_(token_hashes ^ key0, key1)
    uniform = _shift_right(bits, 9).to(torch.float32).add_(0.5).mul_(2.0**-23)
    return uniform.log_().neg_().log_().neg_()


def gumbel_argmax_(
    scores: Tensor, threshold: Tensor, token_hashes: Tensor, key0: Tensor, key1: Tensor
) -> Tensor:
    """Draw one token a row from softmax(scores) over the tokens that reach the threshold.

    Args:
        scores: [num_rows, vocab_size] float32, finite or -inf; overwritten.
        threshold: [num_rows] float32, at most the row's largest score.
        token_hashes: [vocab_size] int32.
        key0: [num_rows] int32.
        key1: [num_rows] int32.
    Returns: [num_rows] int64, the first index where two are equal.
    """
    # A token further below the best than the noise reaches loses even with the best of luck.
    can_win = scores.amax(dim=-1) - (MAX_NOISE - MIN_NOISE)
    loses = scores < torch.maximum(threshold, can_win)[:, None]
    scores.masked_fill_(loses, -math.inf)
    # Elsewhere than on a CPU, waiting for the count would cost more than computing all noise.
    if scores.device.type == "cpu" and _few_win(loses):
        rows, ids = torch.nonzero(~loses, as_tuple=True)
        scores[rows, ids] += gumbel_noise(token_hashes[ids], key0[rows], key1[rows])
    else:
        scores += gumbel_noise(token_hashes, key0[:, None], key1[:, None])
    return scores.max(dim=-1).indices


def truncation_threshold(
    scores: Tensor,
    top_k: NDArray[np.int64],
    top_p: NDArray[np.float32],
    min_p: NDArray[np.float32],
) -> Tensor:
    """The smallest score kept by top_k, then top_p among those, then min_p.

    top_p keeps the shortest list of most probable tokens whose share reaches it; min_p those whose
    probability is at least that part of the best token's.

    Args:
        scores: [num_rows, vocab_size] float32, logits / temperature; not modified.
        top_k: [num_rows] on the host; 0, or vocab_size and more, keeps all.
        top_p: [num_rows] on the host, above 0; 1 keeps all.
        min_p: [num_rows] on the host; 0 keeps all.
    Returns: [num_rows] float32; -inf where everything is kept.
    """
    num_rows, vocab_size = scores.shape
    threshold = scores.new_full((num_rows,), -math.inf)
    has_top_k = (top_k > 0) & (top_k < vocab_size)
    has_top_p = top_p < 1.0
    if has_top_k.any():
        rows = upload(np.flatnonzero(has_top_k), scores.device)
        threshold[rows] = _top_k_threshold(scores[rows], top_k[has_top_k], top_p[has_top_k])
    if (only_top_p := has_top_p & ~has_top_k).any():
        rows = upload(np.flatnonzero(only_top_p), scores.device)
        threshold[rows] = _top_p_threshold(scores[rows], upload(top_p[only_top_p], scores.device))
    if (min_p > 0.0).any():
        with np.errstate(divide="ignore"):
            below_best = upload(np.log(min_p), scores.device)  # [num_rows], -inf where min_p is 0
        threshold = torch.maximum(threshold, scores.amax(dim=-1) + below_best)
    return threshold


def _top_k_threshold(
    scores: Tensor, top_k: NDArray[np.int64], top_p: NDArray[np.float32]
) -> Tensor:
    best = scores.topk(int(top_k.max()), dim=-1).values  # [num_rows, largest k], best first
    kept = upload(top_k, scores.device)
    if (top_p < 1.0).any():
        is_kept = torch.arange(best.shape[1], device=best.device) < kept[:, None]
        best = best.masked_fill(~is_kept, -math.inf)
        log_total = best.logsumexp(dim=-1, keepdim=True)
        kept = torch.minimum(kept, _nucleus_size(best, log_total, upload(top_p, scores.device)))
    return best.gather(1, kept[:, None] - 1)[:, 0]


def _top_p_threshold(scores: Tensor, top_p: Tensor) -> Tensor:
    log_total = scores.logsumexp(dim=-1, keepdim=True)
    if scores.device.type != "cpu":  # where looking whether the guess held would mean to wait
        best = scores.sort(dim=-1, descending=True).values
        return _last_of_nucleus(best, log_total, top_p)[0]
    best = scores.topk(min(NUCLEUS_GUESS, scores.shape[1]), dim=-1).values
    threshold, size = _last_of_nucleus(best, log_total, top_p)
    # A nucleus as long as the list may go on behind it.
    if (goes_on := size == best.shape[1]).any():
        best = torch.from_numpy(np.sort(scores[goes_on].numpy())).flip(-1)  # 20 times torch's speed
        threshold[goes_on] = _last_of_nucleus(best, log_total[goes_on], top_p[goes_on])[0]
    return threshold


def _last_of_nucleus(best: Tensor, log_total: Tensor, top_p: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest score of each row's nucleus, and how many tokens the nucleus has."""
    size = _nucleus_size(best, log_total, top_p)
    return best.gather(1, size[:, None] - 1)[:, 0], size


def _nucleus_size(best: Tensor, log_total: Tensor, top_p: Tensor) -> Tensor:
    """Number of leading tokens before which less than top_p is gathered; at least 1."""
    share = (best - log_total).exp_()
    before = share.cumsum(dim=-1).sub_(share)
    return (before < top_p[:, None]).sum(dim=-1).clamp_(min=1)


def apply_penalties(
    logits: Tensor,
    output_counts: Tensor,
    in_prompt: Tensor,
    repetition: Tensor,
    presence: Tensor,
    frequency: Tensor,
) -> Tensor:
    """Make tokens that occurred less probable.

    The repetition penalty divides positive and multiplies negative logits of tokens in prompt or
    output (Keskar et al. 2019, arXiv:1909.05858); then the frequency penalty is subtracted once
    for each occurrence in the output and the presence penalty once where there is any.

    Args:
        logits: [num_rows, vocab_size] float32, not modified.
        output_counts: [num_rows, vocab_size] int32.
        in_prompt: [num_rows, vocab_size] bool.
        repetition: [num_rows] float32, 1 for none.
        presence: [num_rows] float32, 0 for none.
        frequency: [num_rows] float32, 0 for none.
    Returns: [num_rows, vocab_size] float32.
    """
    in_output = output_counts > 0
    factor = torch.where(in_output | in_prompt, repetition[:, None], 1.0)
    logits = torch.where(logits > 0, logits / factor, logits * factor)
    logits = logits - frequency[:, None] * output_counts
    return logits - presence[:, None] * in_output


def _few_win(loses: Tensor) -> bool:
    return bool((loses.numel() - loses.count_nonzero()) * DENSE_SHARE < loses.numel())


def _mix_(x: Tensor, key: Tensor | int = 0) -> Tensor:
    """`mix` in place. int32 multiplication wraps on every device, and takes a fifth of the time of int64."""
    x ^= _shift_right(x, 16)
    x *= _MULTIPLIER_0
    x ^= _shift_right(x, 15)
    x += key
    x *= _MULTIPLIER_1 - 2**32  # the same 32 bits as a signed number
    x ^= _shift_right(x, 16)
    return x


def _shift_right(x: Tensor, count: int) -> Tensor:
    """Logical shift: torch's own copies the sign bit."""
    return (x >> count).bitwise_and_((1 << (32 - count)) - 1)
