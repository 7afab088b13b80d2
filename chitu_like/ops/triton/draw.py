"""Drawing tokens without sorting the vocabulary: four launches whose shapes are the batch's.

*Scan* and *plan* (triton/row_plan.py) find a row's best logit, which ends a greedy row, and the way
of any other. *Sift*, a program a part of a row, then looks at all tokens once more:

- Nothing is truncated, or by min_p alone, so it is known which tokens are kept. Listed are those whose
  score and noise may come to what another token reaches: some tens.
- top_k or top_p keep few tokens, as of a trained model's logits as a rule. All that may be kept are
  listed, in the order of programs, which nothing depends on.
- Probability is spread wide. The tokens, or their weights, are summed in bins of equal distance.

*Finish* searches the listed tokens for the smallest score that is kept (triton/truncation.py) and
draws among those that reach it, a program a row. Of a row with bins, programs of all parts first list
the tokens of the bin at which the kept ones end, and those which may win; the last one searches.
What does not fit into a list, one program finds in the row itself: slow, and as right.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from chitu_like.ops.draw import draw_tokens_op
from chitu_like.ops.triton.draw_tiling import DrawTiling, tiling_for
from chitu_like.ops.triton.gumbel import gumbel_noise, may_win, noise_keys
from chitu_like.ops.triton.launch import dependent_launch, serves, wait_for_previous
from chitu_like.ops.triton.row_plan import (
    BEST_LOGIT,
    DRAWN,
    GREEDY,
    LAST,
    LISTED,
    MODE,
    NUM_ARRIVED,
    NUM_BINS,
    NUM_CANDIDATES,
    NUM_COUNTS,
    NUM_IDS,
    NUM_PARAMS,
    NUM_VALUES,
    NUM_WINNERS,
    NUMBER,
    RECORD_SIZE,
    SEARCHED,
    SURVEYED,
    bin_of,
    load_bests,
    plan_kernel,
    scan_kernel,
    sure_score,
)
from chitu_like.ops.triton.truncation import (
    LAST_KEY,
    NO_KEY,
    append_tokens,
    distance_of,
    key_of,
    last_kept_key,
    load_limits,
    load_tokens,
    make_sound,
    share_of,
    weight_of,
)


@triton.jit
def _load_record(record):
    """Mode, best logit, last key and number of a row's plan."""
    best = tl.load(record + BEST_LOGIT).to(tl.float32, bitcast=True)
    number = tl.load(record + NUMBER).to(tl.float32, bitcast=True)
    return tl.load(record + MODE), best, tl.load(record + LAST), number


@triton.jit
def _load_step(logits, start, vocab_size, STEP: tl.constexpr):
    """Token ids from `start` on, whether they are tokens, and their logits, all [STEP]."""
    token_ids = start + tl.arange(0, STEP)
    is_token = token_ids < vocab_size
    raw = tl.load(logits + token_ids, mask=is_token, other=0.0)
    return token_ids, is_token, make_sound(raw)


@triton.jit
def _is_any(chosen):
    return tl.max(chosen.to(tl.int32), 0) > 0


@triton.jit
def _list_winners(
    logits, listed, counter, start, end, vocab_size, best, temperature, last, floor, key0, key1,
    STEP: tl.constexpr, CAPACITY: tl.constexpr,
):  # fmt: skip
    """List the tokens that are kept, their keys up to `last`, and may come to `floor`."""
    for at in tl.range(start, end, STEP, num_stages=3):
        token_ids, is_token, sound = _load_step(logits, at, vocab_size, STEP)
        scores = (sound - best) * (1.0 / temperature)
        is_listed = is_token & may_win(token_ids, scores, floor, key0, key1)
        if _is_any(is_listed):
            keys = key_of(distance_of(sound, best, temperature))
            append_tokens(listed, counter, is_listed & (keys <= last), keys, token_ids, CAPACITY)


@triton.jit
def _list_candidates(
    logits, listed, counter, total, start, end, vocab_size, best, temperature, last, needs_total,
    STEP: tl.constexpr, CAPACITY: tl.constexpr,
):  # fmt: skip
    """List the tokens with keys up to `last`; add the weights of all to the total."""
    weights = tl.zeros([STEP], tl.int64)
    for at in tl.range(start, end, STEP, num_stages=3):
        token_ids, is_token, sound = _load_step(logits, at, vocab_size, STEP)
        keys = tl.where(is_token, key_of(distance_of(sound, best, temperature)), NO_KEY)
        if needs_total:
            weights += weight_of(keys)
        is_listed = keys <= last
        if _is_any(is_listed):
            append_tokens(listed, counter, is_listed, keys, token_ids, CAPACITY)
    if needs_total:
        tl.atomic_add(total, tl.sum(weights, 0), sem="relaxed")


@triton.jit
def _fill_bins(
    logits, bins, start, end, vocab_size, best, temperature, scale, by_weight, STEP: tl.constexpr
):
    """Add tokens to the bins of their distance, by weight or by number."""
    rest = tl.zeros([STEP], tl.int64)
    for at in tl.range(start, end, STEP, num_stages=3):
        _, is_token, sound = _load_step(logits, at, vocab_size, STEP)
        distance = distance_of(sound, best, temperature)
        units = is_token.to(tl.int64)
        if by_weight:
            units = tl.where(is_token, weight_of(key_of(distance)), 0)
        number = bin_of(distance, scale)
        # Most tokens may be in the last bin, where they would wait for each other.
        is_near = number < NUM_BINS - 1
        tl.atomic_add(bins + number, units, mask=is_near & (units > 0), sem="relaxed")
        rest += tl.where(is_near, 0, units)
    tl.atomic_add(bins + (NUM_BINS - 1), tl.sum(rest, 0), sem="relaxed")


@triton.jit(do_not_specialize=["slots", "positions"])
def _sift_kernel(
    logits, table, slots, positions, records, counts, bins, lists, row_stride, vocab_size,
    PART: tl.constexpr, STEP: tl.constexpr, CAPACITY: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One part of one row."""
    row, start = tl.program_id(0).to(tl.int64), tl.program_id(1) * PART
    wait_for_previous(PDL)
    mode, best, last, number = _load_record(records + row * RECORD_SIZE)
    if (mode != GREEDY) & (mode != SEARCHED):
        row_params = table + tl.load(slots + row) * NUM_PARAMS
        temperature, top_k, top_p, _ = load_limits(row_params, vocab_size)
        row_logits, row_bins = logits + row * row_stride, bins + row * NUM_BINS
        row_counts, listed = counts + row * NUM_COUNTS, lists + row * 2 * CAPACITY
        end = tl.minimum(start + PART, vocab_size)
        if mode == DRAWN:
            key0, key1 = noise_keys(row_params, tl.load(positions + row))
            _list_winners(
                row_logits, listed + CAPACITY, row_counts + NUM_WINNERS, start, end, vocab_size,
                best, temperature, last, number, key0, key1, STEP, CAPACITY,
            )  # fmt: skip
        elif mode == LISTED:
            _list_candidates(
                row_logits, listed, row_counts + NUM_CANDIDATES, row_bins, start, end, vocab_size,
                best, temperature, last, (top_k == 0) & (top_p < 1), STEP, CAPACITY,
            )  # fmt: skip
        else:
            _fill_bins(
                row_logits, row_bins, start, end, vocab_size, best, temperature, number,
                top_k == 0, STEP,
            )  # fmt: skip


@triton.jit
def _find_bin(units, total, top_k, top_p):
    """The bin in which top_k or top_p is reached, and what the bins before it reach."""
    target = top_k.to(tl.int64) if top_k > 0 else share_of(total, top_p)
    is_before = tl.cumsum(units, 0) < target
    return tl.sum(is_before.to(tl.int32), 0), tl.sum(tl.where(is_before, units, 0), 0)


@triton.jit
def _draw_up_to(
    last, logits, listed, num_listed, count, best, temperature, key0, key1, CHUNK: tl.constexpr
):
    """The token with the largest sum of score and noise among those whose key is up to `last`."""
    scores = tl.full([CHUNK], float("-inf"), tl.float32)
    tokens = tl.full([CHUNK], NO_KEY, tl.int32)
    for start in range(0, count, CHUNK):
        token_ids, keys = load_tokens(
            logits, listed, num_listed, start, count, best, temperature, CHUNK
        )  # fmt: skip
        distance = tl.minimum(keys, LAST_KEY).to(tl.float32, bitcast=True)
        score = gumbel_noise(token_ids, key0, key1) - distance
        score = tl.where(keys <= last, score, float("-inf"))
        is_better = (score > scores) | ((score == scores) & (token_ids < tokens))
        scores = tl.where(is_better, score, scores)
        tokens = tl.where(is_better, token_ids, tokens)
    return tl.min(tl.where(scores == tl.max(scores, 0), tokens, NO_KEY), 0)


@triton.jit
def _list_at_bin(
    logits, listed, row_counts, start, end, vocab_size, best, temperature, scale, found,
    min_p_key, floor, key0, key1, STEP: tl.constexpr, CAPACITY: tl.constexpr,
):  # fmt: skip
    """List the tokens in the bin `found`; and those up to it that may come to `floor`."""
    for at in tl.range(start, end, STEP, num_stages=3):
        token_ids, is_token, sound = _load_step(logits, at, vocab_size, STEP)
        distance = distance_of(sound, best, temperature)
        keys, number = key_of(distance), bin_of(distance, scale)
        is_candidate = is_token & (number == found)
        if _is_any(is_candidate):
            append_tokens(
                listed, row_counts + NUM_CANDIDATES, is_candidate, keys, token_ids, CAPACITY
            )
        is_winner = is_token & (number <= found) & (keys <= min_p_key)
        is_winner = is_winner & may_win(token_ids, 0.0 - distance, floor, key0, key1)
        if _is_any(is_winner):
            append_tokens(
                listed + CAPACITY, row_counts + NUM_WINNERS, is_winner, keys, token_ids, CAPACITY
            )


@triton.jit(do_not_specialize=["slots", "positions"])
def _finish_kernel(
    logits, table, slots, positions, tile_values, tile_ids, records, counts, bins, lists,
    tokens, last_sampled, row_stride, vocab_size, num_tiles,
    PART: tl.constexpr, STEP: tl.constexpr, TILES: tl.constexpr, CAPACITY: tl.constexpr,
    CHUNK: tl.constexpr, SAMPLE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One part of one row with bins; or one row."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    wait_for_previous(PDL)
    mode, best, last, scale = _load_record(records + row * RECORD_SIZE)
    if (mode == SURVEYED) | ((mode != GREEDY) & (part == 0)):
        slot = tl.load(slots + row)
        row_params = table + slot * NUM_PARAMS
        temperature, top_k, top_p, min_p_key = load_limits(row_params, vocab_size)
        key0, key1 = noise_keys(row_params, tl.load(positions + row))
        row_logits = logits + row * row_stride
        row_counts, listed = counts + row * NUM_COUNTS, lists + row * 2 * CAPACITY
        total, before = tl.full((), 0, tl.int64), tl.full((), 0, tl.int64)
        is_last = mode != SURVEYED
        if mode != DRAWN:
            units = tl.load(bins + row * NUM_BINS + tl.arange(0, NUM_BINS))
            total = tl.sum(units, 0)
            if mode == SURVEYED:
                found, before = _find_bin(units, total, top_k, top_p)
                bests, firsts = load_bests(
                    tile_values + row * NUM_VALUES * num_tiles,
                    tile_ids + row * NUM_IDS * num_tiles, num_tiles, TILES,
                )  # fmt: skip
                floor = sure_score(
                    row_logits, bests, firsts, best, temperature, min_p_key, scale, found,
                    key0, key1, vocab_size, SAMPLE,
                )  # fmt: skip
                _list_at_bin(
                    row_logits, listed, row_counts, part * PART,
                    tl.minimum((part + 1) * PART, vocab_size), vocab_size, best, temperature,
                    scale, found, min_p_key, floor, key0, key1, STEP, CAPACITY,
                )  # fmt: skip
                tl.debug_barrier()  # the whole program has written, before it is said
                is_last = tl.atomic_add(row_counts + NUM_ARRIVED, 1) == tl.num_programs(1) - 1
        if is_last:
            if mode != DRAWN:
                count = tl.load(row_counts + NUM_CANDIDATES)
                fits = (mode != SEARCHED) & (count <= CAPACITY)
                last = last_kept_key(
                    row_logits, listed, tl.where(fits, count, 0), tl.where(fits, count, vocab_size),
                    best, temperature, top_k, top_p, min_p_key, total, tl.where(fits, before, 0),
                    CHUNK,
                )  # fmt: skip
            is_winner = mode != LISTED
            count = tl.load(row_counts + tl.where(is_winner, NUM_WINNERS, NUM_CANDIDATES))
            fits = (mode != SEARCHED) & (count <= CAPACITY)
            token = _draw_up_to(
                last, row_logits, listed + tl.where(is_winner, CAPACITY, 0),
                tl.where(fits, count, 0), tl.where(fits, count, vocab_size),
                best, temperature, key0, key1, CHUNK,
            )  # fmt: skip
            tl.store(tokens + row, token.to(tl.int64))
            tl.store(last_sampled + slot, token.to(tl.int64))


@draw_tokens_op.register("triton", supports=serves)
def draw_tokens(
    logits: Tensor,
    params: Tensor,
    slots: Tensor,
    output_positions: Tensor,
    last_sampled: Tensor,
    tiling: DrawTiling | None = None,
) -> tuple[Tensor, Tensor]:
    """See ops/draw.py. The tiling is that of the number of rows, unless one is given."""
    num_rows, vocab_size = logits.shape
    row_stride = logits.stride(0)
    assert logits.stride(1) == 1, f"strides of logits {logits.stride()}"
    cut = tiling or tiling_for(num_rows)
    num_tiles = triton.cdiv(vocab_size, cut.tile)
    num_groups = triton.cdiv(vocab_size, cut.group)
    tiles = triton.next_power_of_2(num_tiles)

    def empty(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.empty(num_rows, *shape, dtype=dtype, device=logits.device)

    tokens, is_unsound = empty(torch.int64), empty(torch.bool)
    if num_rows == 0:
        return tokens, is_unsound
    tile_values = empty(torch.float32, NUM_VALUES.value, num_tiles)
    tile_ids = empty(torch.int32, NUM_IDS.value, num_tiles)
    maxima = empty(torch.float32, num_groups)
    records, counts = empty(torch.int32, RECORD_SIZE.value), empty(torch.int32, NUM_COUNTS.value)
    bins, lists = empty(torch.int64, NUM_BINS.value), empty(torch.int64, 2, cut.capacity)
    launch = dependent_launch(logits.device)
    parts = (num_rows, triton.cdiv(vocab_size, cut.part))
    scan_kernel[(num_rows, num_tiles)](
        logits, params, slots, tile_values, tile_ids, maxima, counts, bins, row_stride, vocab_size,
        num_groups, TILE=cut.tile, GROUP=cut.group, num_warps=cut.num_warps, **launch,
    )  # fmt: skip
    plan_kernel[(num_rows,)](
        logits, params, slots, output_positions, tile_values, tile_ids, maxima, records,
        tokens, is_unsound, last_sampled, row_stride, vocab_size, num_tiles, num_groups,
        TILES=tiles, GROUPS=triton.next_power_of_2(num_groups), CAPACITY=cut.capacity,
        SAMPLE=cut.sample, num_warps=cut.plan_warps, **launch,
    )  # fmt: skip
    _sift_kernel[parts](
        logits, params, slots, output_positions, records, counts, bins, lists, row_stride,
        vocab_size, PART=cut.part, STEP=cut.step, CAPACITY=cut.capacity,
        num_warps=cut.num_warps, **launch,
    )  # fmt: skip
    _finish_kernel[parts](
        logits, params, slots, output_positions, tile_values, tile_ids, records, counts, bins,
        lists, tokens, last_sampled, row_stride, vocab_size, num_tiles,
        PART=cut.part, STEP=cut.step, TILES=tiles, CAPACITY=cut.capacity, CHUNK=cut.chunk,
        SAMPLE=cut.sample, num_warps=cut.num_warps, **launch,
    )  # fmt: skip
    return tokens, is_unsound
