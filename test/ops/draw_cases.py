"""The Triton twin of draw_tokens; test_kernels.py runs this file in Triton's interpreter.

By hand: `TRITON_INTERPRET=1 pytest test/ops/draw_cases.py --slow -m "not gpu"` on a CPU, and without the
variable and `-m` on a CUDA device, where the same cases run compiled, and at real sizes.

The truth is the reference's score and noise, and a truncation whose sums are float64.
"""

import math

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from reference_sampler import reference_mix
from torch import Tensor

from chitu_like.ops import draw, sampling
from chitu_like.ops.triton import draw as twin
from chitu_like.ops.triton.draw_tiling import TILINGS, DrawTiling, tiling_for
from chitu_like.ops.triton.gumbel import gumbel_noise, may_win, noise_bits, noise_keys
from chitu_like.ops.triton.truncation import WEIGHT_UNITS, last_kept_key, load_limits

IS_INTERPRETED = triton.knobs.runtime.interpret
DEVICE = torch.device("cpu" if IS_INTERPRETED else "cuda")
# Several tiles of few tokens, as an interpreter can walk; lists that hold all candidates, and not.
SMALL = DrawTiling(
    tile=64, part=64, step=32, num_warps=1, plan_warps=1, group=8, capacity=128, chunk=64, sample=32
)
OVERFULL = DrawTiling(
    tile=32, part=128, step=64, num_warps=1, plan_warps=1, group=4, capacity=8, chunk=128, sample=16
)
SLACK = 1e-6  # of top_p: beyond it, float32 sums decide alike

Row = dict[str, float]
ROWS: list[Row] = [
    {"temperature": 0.0, "top_k": 3, "top_p": 0.5},
    {},
    {"temperature": 0.4},
    {"top_k": 1},
    {"top_k": 20},
    {"top_k": 149, "temperature": 2.0},
    {"top_k": 10**6},
    {"top_p": 0.3},
    {"top_p": 0.95, "temperature": 1.7},
    {"top_p": 1e-6},
    {"top_p": 0.9999999},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"top_k": 20, "top_p": 0.8},
    {"top_p": 0.9, "min_p": 0.1},
    {"top_k": 7, "min_p": 0.3},
    {"top_k": 40, "top_p": 0.95, "min_p": 0.02, "temperature": 0.7},
    {"temperature": 1e-5, "top_p": 0.9},
    {"temperature": 100.0, "top_p": 0.5},
]


def pack(rows: list[Row]) -> Tensor:
    """One slot a row; seeds use all 64 bits."""
    plain: Row = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    packed = [
        draw.pack_params(seed=(slot + 1) * 0x9E3779B97F4A7C15 % 2**64, **(plain | row))
        for slot, row in enumerate(rows)
    ]
    return torch.from_numpy(np.stack(packed)).to(DEVICE)


def kept_threshold(scores: Tensor, row: Row, slack: float = 0.0) -> float:
    """The smallest score that is kept, for a top_p that is a little less strict."""
    ordered = scores.double().sort(descending=True).values
    if 0 < (top_k := int(row.get("top_k", 0))) < len(scores):
        ordered = ordered[:top_k]
    weights = ordered.exp()
    if (top_p := row.get("top_p", 1.0)) < 1:
        before = (weights.cumsum(0) - weights) / weights.sum()
        ordered = ordered[: max(1, int((before < np.float32(top_p) + slack).sum()))]
    last = ordered[-1].item()
    min_p = np.float32(row.get("min_p", 0.0))
    return max(last, float(np.log(min_p))) if min_p > 0 else last


def expected_tokens(
    logits: Tensor, rows: list[Row], params: Tensor, positions: Tensor, slack: float
) -> Tensor:
    """What the op should draw; row i has the parameters of slot i."""
    sound = draw.make_sound(logits)
    host = params.cpu().numpy()
    seeds = np.ascontiguousarray(host[:, :2]).view(np.uint64)[:, 0]
    keys = sampling.noise_keys(seeds, positions.cpu().numpy())
    key0, key1 = (torch.from_numpy(key).to(DEVICE) for key in keys)
    noise = sampling.gumbel_noise(
        sampling.hash_token_ids(logits.shape[1], DEVICE), key0[:, None], key1[:, None]
    )
    tokens = sound.max(dim=-1).indices
    for i, row in enumerate(rows):
        temperature = float(host.view(np.float32)[i, draw.TEMPERATURE])
        if temperature > 0:
            scores = (sound[i] - sound[i].max()) / temperature
            is_kept = scores >= kept_threshold(scores, row, slack)
            tokens[i] = (scores + noise[i]).masked_fill(~is_kept, -math.inf).argmax()
    return tokens


def check(logits: Tensor, rows: list[Row], tiling: DrawTiling = SMALL, position: int = 0) -> None:
    """Draw for each of `rows`, and compare."""
    params, count = pack(rows), len(rows)
    logits = logits.to(DEVICE)
    positions = torch.arange(count, device=DEVICE) * 5 + position
    last_sampled = torch.full((count + 1,), -7, device=DEVICE)
    slots = torch.arange(count, device=DEVICE)
    before = logits.clone()
    tokens, is_unsound = twin.draw_tokens(logits, params, slots, positions, last_sampled, tiling)
    assert torch.equal(logits.nan_to_num(5.0), before.nan_to_num(5.0))
    assert torch.equal(last_sampled[:count], tokens)
    assert last_sampled[count] == -7
    assert torch.equal(is_unsound, ~logits.max(dim=-1).values.isfinite())
    low = expected_tokens(logits, rows, params, positions, -SLACK)
    high = expected_tokens(logits, rows, params, positions, SLACK)
    assert ((tokens == low) | (tokens == high)).all(), (tokens, low, high)
    assert (low == high).float().mean() > 0.9, "the cases leave too much open"


# Noise


@triton.jit
def noise_kernel(table, position, bits, noise, COUNT: tl.constexpr):
    token_ids = tl.arange(0, COUNT)
    key0, key1 = noise_keys(table, position.to(tl.int64))
    drawn = noise_bits(token_ids, key0, key1)
    tl.store(bits + token_ids, drawn.to(tl.int32, bitcast=True))
    tl.store(noise + token_ids, gumbel_noise(token_ids, key0, key1))


@pytest.mark.parametrize(("seed", "position"), [(0, 0), (2**64 - 1, 2**31 - 2), (3 << 40, 1234)])
def test_noise_has_the_bits_of_the_reference(seed: int, position: int) -> None:
    count = 1024
    params = draw.pack_params(seed=seed, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
    made = torch.empty(count, dtype=torch.int32, device=DEVICE)
    noise = torch.empty(count, device=DEVICE)
    noise_kernel[(1,)](torch.from_numpy(params).to(DEVICE), position, made, noise, COUNT=count)
    keys = sampling.noise_keys(np.array([seed], np.uint64), np.array([position], np.int64))
    key0, key1 = (int(key.view(np.uint32)[0]) for key in keys)
    expected = [reference_mix(reference_mix(token) ^ key0, key1) for token in range(count)]
    assert made.cpu().numpy().view(np.uint32).tolist() == expected
    hashes = sampling.hash_token_ids(count, DEVICE)
    reference = sampling.gumbel_noise(hashes, *(torch.from_numpy(key).to(DEVICE) for key in keys))
    # Logarithms of torch, numpy and a device's library may round otherwise.
    torch.testing.assert_close(noise, reference, rtol=1e-6, atol=1e-6)


@triton.jit
def may_win_kernel(table, scores, margin, noise, may, COUNT: tl.constexpr):
    token_ids = tl.arange(0, COUNT)
    key0, key1 = noise_keys(table, tl.full((), 5, tl.int64))
    drawn = gumbel_noise(token_ids, key0, key1)
    floor = drawn + tl.load(scores + token_ids) + margin
    tl.store(noise + token_ids, drawn)
    won = may_win(token_ids, tl.load(scores + token_ids), floor, key0, key1)
    tl.store(may + token_ids, won.to(tl.int32))


@pytest.mark.parametrize("seed", [1, 2**63 + 5])
def test_what_reaches_a_score_may_win_and_what_falls_short_of_it_does_not(seed: int) -> None:
    count = 1 << 14
    row = draw.pack_params(seed=seed, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
    params, noise = torch.from_numpy(row).to(DEVICE), torch.empty(count, device=DEVICE)
    scores = -20 * torch.rand(count, device=DEVICE)
    may = torch.empty(count, dtype=torch.int32, device=DEVICE)
    may_win_kernel[(1,)](params, scores, 0.0, noise, may, COUNT=count)
    assert may.all()
    may_win_kernel[(1,)](params, scores, 0.1, noise, may, COUNT=count)
    is_large = noise > 4.0  # where 1 - uniform is nearly -log(uniform)
    assert is_large.sum() > 100
    assert not may[is_large].any()


# Truncation


@triton.jit
def threshold_kernel(logits, table, last, vocab_size, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    temperature, top_k, top_p, min_p_key = load_limits(table, vocab_size)
    ids = tl.arange(0, BLOCK)
    row = tl.load(logits + ids, mask=ids < vocab_size, other=float("-inf"))
    best = tl.max(row, 0)
    total = tl.sum(tl.exp(-tl.div_rn(best - row, temperature)), 0)
    key = last_kept_key(
        logits, table, 0, vocab_size, best, temperature, top_k, top_p, min_p_key,
        (total * WEIGHT_UNITS).to(tl.int64), 0, CHUNK,
    )  # fmt: skip
    tl.store(last, key)


def found_threshold(logits: Tensor, row: Row) -> float:
    last = torch.empty(1, dtype=torch.int32, device=DEVICE)
    size = len(logits)
    threshold_kernel[(1,)](
        logits.to(DEVICE), pack([row])[0], last, size,
        CHUNK=64, BLOCK=triton.next_power_of_2(size),
    )  # fmt: skip
    return -last.cpu().numpy().view(np.float32).item()


MORE_SHAPES = ("flat", "equal", "one")


def is_open(scores: Tensor, row: Row) -> bool:
    return kept_threshold(scores, row, -SLACK) != kept_threshold(scores, row, SLACK)


@pytest.mark.parametrize(
    "shape",
    ["tied", *(pytest.param(name, marks=pytest.mark.slow) for name in ("spread", *MORE_SHAPES))],
)
def test_the_threshold_is_that_of_a_sort(shape: str) -> None:
    logits = {
        "spread": torch.randn(150) * 4,
        "tied": torch.randint(-8, 8, (150,)) / 4 * 1.0009765625,  # keeps sums off the shares
        "flat": torch.randn(150) / 100,
        "equal": torch.full((90,), -3.0),
        "one": torch.tensor([2.0]),
    }[shape]
    num_checked = 0
    for row in ROWS[3:17]:
        temperature = np.float32(row.get("temperature", 1.0))
        scores = (logits - logits.max()) / torch.tensor(temperature)
        if is_open(scores, row):
            continue
        num_checked += 1
        found = found_threshold(logits, row)
        kept = scores >= kept_threshold(scores, row)
        assert torch.equal(scores >= found, kept), row
    assert num_checked >= 12


# Tokens


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)]
)
def test_a_mixed_batch_draws_the_reference_tokens(dtype: torch.dtype) -> None:
    rows = ROWS[1::3] if dtype == torch.float32 else ROWS[::3]
    check((torch.randn(len(rows), 150) * 3).to(dtype), rows)


def test_rows_whose_candidates_do_not_fit_are_searched_whole() -> None:
    rows: list[Row] = [{"top_k": 30}, {"top_p": 0.9}, {"min_p": 0.001}, {"top_k": 3}]
    # The best tokens stand last, and are more than 8 but far from all.
    check((torch.randn(4, 150) * 3).sort().values, rows, OVERFULL)
    equal: list[Row] = [{"top_p": 0.5}, {"top_k": 140}, {"top_k": 140, "top_p": 0.3}]
    check(torch.full((3, 150), 2.0), equal, OVERFULL)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tiling", "dtype", "spread"),
    [
        (SMALL, torch.float32, 1.0),
        (SMALL, torch.bfloat16, 0.01),
        (SMALL, torch.float16, 8.0),
        (OVERFULL, torch.bfloat16, 3.0),
    ],
    ids=str,
)
def test_every_combination_draws_the_reference_tokens(
    tiling: DrawTiling, dtype: torch.dtype, spread: float
) -> None:
    check((torch.randn(len(ROWS), 211) * spread).to(dtype), ROWS, tiling, position=99)


@pytest.mark.parametrize("vocab_size", [1, 63, 64, 65])
def test_any_vocabulary_is_drawn_from(vocab_size: int) -> None:
    check(torch.randn(3, vocab_size), [{}, {"top_k": 5, "top_p": 0.7}, {"temperature": 0.0}])


def test_rows_may_lie_apart() -> None:
    check((torch.randn(3, 140) * 2)[:, :101], [{}, {"top_k": 9}, {"temperature": 0.0}])


def test_equals_are_all_kept_and_greedy_takes_the_first() -> None:
    logits = torch.zeros(4, 150)
    logits[:, [140, 77, 101]] = 5.0
    rows: list[Row] = [{"temperature": 0.0}, {"top_k": 1}, {"top_p": 0.01}, {"min_p": 1.0}]
    check(logits, rows)
    tokens = set()
    params = pack([{"top_k": 1}] * 12)
    last_sampled = torch.zeros(12, dtype=torch.int64, device=DEVICE)
    index = torch.arange(12, device=DEVICE)
    drawn, _ = twin.draw_tokens(
        logits[:1].repeat(12, 1).to(DEVICE), params, index, index, last_sampled, SMALL
    )
    tokens.update(drawn.tolist())
    assert tokens == {140, 77, 101}


def test_unsound_rows_are_told_and_drawn_from_what_is_left() -> None:
    logits = torch.randn(8, 130)
    best = logits.argmax(dim=-1)
    logits[0, best[0]] = math.nan
    logits[1, best[1]] = math.inf
    logits[2] = -math.inf
    logits[3] = math.nan
    logits[4, 64:] = -math.inf  # sound: banned tokens
    logits[5, 3] = math.inf
    logits[6, 100] = math.nan
    rows: list[Row] = [{"temperature": 0.0}] * 4 + [{}, {"top_p": 0.9}, {"top_k": 5}, {}]
    check(logits, rows)


def test_padding_rows_share_a_slot_and_nobody_else_is_touched() -> None:
    params = torch.cat([pack([{"top_k": 4}, {}]), torch.zeros_like(pack([{}]))])
    slots = torch.tensor([1, 2, 0, 2], dtype=torch.int32, device=DEVICE)
    positions = torch.tensor([3, 0, 8, 0], dtype=torch.int32, device=DEVICE)
    logits = torch.randn(4, 100, device=DEVICE)
    last_sampled = torch.full((3,), -1, device=DEVICE)
    tokens, _ = twin.draw_tokens(logits, params, slots, positions, last_sampled, SMALL)
    reference = torch.full((3,), -1, device=DEVICE)
    expected, _ = draw.draw_tokens(logits, params, slots, positions, reference)
    assert torch.equal(tokens, expected)
    assert torch.equal(last_sampled[:2], reference[:2])
    assert last_sampled[2] in (tokens[1], tokens[3])


@pytest.mark.slow
def test_a_row_draws_the_same_alone_as_among_others() -> None:
    rows: list[Row] = [{}, {"top_p": 0.6}, {"top_k": 8, "top_p": 0.9}]
    params, logits = pack(rows), torch.randn(3, 150, device=DEVICE) * 2
    slots = torch.arange(3, device=DEVICE)
    noted = torch.zeros(3, dtype=torch.int64, device=DEVICE)
    together, _ = twin.draw_tokens(logits, params, slots, slots, noted, SMALL)
    alone = [
        twin.draw_tokens(logits[one], params, slots[one], slots[one], noted, SMALL)[0].item()
        for one in (slice(i, i + 1) for i in range(3))
    ]
    assert together.tolist() == alone


def drawn_by(tiling: DrawTiling, logits: Tensor, rows: list[Row]) -> Tensor:
    """Tokens of rows at positions 0, 1, ..."""
    index = torch.arange(len(rows), device=DEVICE)
    return twin.draw_tokens(logits, pack(rows), index, index, torch.zeros_like(index), tiling)[0]


def test_however_rows_are_cut_the_same_tokens_are_drawn() -> None:
    rows: list[Row] = [{}, {"top_p": 0.7}, {"top_p": 0.999}, {"top_k": 40}, {"min_p": 0.01}]
    logits = torch.randn(len(rows), 170, device=DEVICE)
    assert torch.equal(drawn_by(SMALL, logits, rows), drawn_by(OVERFULL, logits, rows))


def test_an_empty_batch_launches_nothing() -> None:
    nobody = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    noted = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    tokens, is_unsound = twin.draw_tokens(
        torch.zeros(0, 50, device=DEVICE), pack([{}]), nobody, nobody, noted
    )
    assert tokens.shape == is_unsound.shape == (0,)


# On a device, at real sizes


@pytest.mark.gpu
@pytest.mark.parametrize("spread", [0.5, 2.5])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("num_rows", [1, 7, 33, 256])
def test_real_sizes_draw_the_reference_tokens(
    num_rows: int, dtype: torch.dtype, spread: float
) -> None:
    rows = [ROWS[(i * 5 + 13) % len(ROWS)] for i in range(num_rows)]
    logits = torch.randn(num_rows, 151_936, device=DEVICE) * spread
    check(logits.to(dtype), rows, tiling_for(num_rows), position=2**20)


@pytest.mark.gpu
@pytest.mark.parametrize("spread", [0.3, 1.0, 4.0])
def test_however_many_rows_are_cut_the_same_tokens_are_drawn(spread: float) -> None:
    rows = [ROWS[i % len(ROWS)] for i in range(96)]
    logits = (torch.randn(len(rows), 128_256, device=DEVICE) * spread).bfloat16()
    first, *others = (drawn_by(cut, logits, rows) for cut in TILINGS)
    for other in others:
        assert torch.equal(first, other)
    for _ in range(20):  # whichever program is the last one
        assert torch.equal(first, drawn_by(TILINGS[-1], logits, rows))


@pytest.mark.gpu
def test_a_recorded_call_draws_for_whoever_comes() -> None:
    count, vocab_size = 8, 32_000
    params, slots = pack(ROWS[:8]), torch.arange(8, device=DEVICE)
    logits = torch.randn(count, vocab_size, device=DEVICE, dtype=torch.bfloat16) * 3
    positions = torch.zeros(8, dtype=torch.int64, device=DEVICE)
    noted = torch.zeros(8, dtype=torch.int64, device=DEVICE)
    twin.draw_tokens(logits, params, slots, positions, noted)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tokens, _ = twin.draw_tokens(logits, params, slots, positions, noted)
    for step in range(3):
        params.copy_(pack(ROWS[step * 4 : step * 4 + 8]))
        positions.fill_(step)
        logits.copy_(torch.randn_like(logits) * 3)
        slots.copy_(torch.randperm(8))
        graph.replay()
        drawn = tokens.clone()
        again, _ = twin.draw_tokens(logits, params, slots, positions, noted)
        assert torch.equal(drawn, again)


@pytest.mark.gpu
@pytest.mark.parametrize("row", [{}, {"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.1}], ids=str)
def test_frequencies_are_those_of_the_distribution(row: Row) -> None:
    count, vocab_size = 50_000, 30
    logits = torch.randn(vocab_size, device=DEVICE) * 1.5
    scores = logits - logits.max()
    weights = scores.double().exp().masked_fill(scores < kept_threshold(scores, row), 0.0)
    expected = (weights / weights.sum() * count).cpu().numpy()
    params = pack([row])
    slots = torch.zeros(count, dtype=torch.int64, device=DEVICE)
    noted = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    tokens, _ = twin.draw_tokens(
        logits.repeat(count, 1), params, slots, torch.arange(count, device=DEVICE), noted
    )
    counts = np.bincount(tokens.cpu().numpy(), minlength=vocab_size)
    assert not counts[expected == 0].any()
    common = expected >= 5
    chi_square = ((counts - expected)[common] ** 2 / expected[common]).sum()
    freedom = common.sum()
    assert chi_square < freedom * (1 - 2 / (9 * freedom) + 4.3 * math.sqrt(2 / (9 * freedom))) ** 3
