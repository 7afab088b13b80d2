"""Truncation, penalties and noise, each against a slow reference, and what is drawn against the law."""

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_sampler import kept_tokens, reference_mix, reference_uniform

from chitu_like.ops import sampling

CPU = torch.device("cpu")


def keys(seeds: list[int], positions: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    key0, key1 = sampling.noise_keys(np.array(seeds, np.uint64), np.array(positions, np.int64))
    return torch.from_numpy(key0), torch.from_numpy(key1)


def noise(seeds: list[int], positions: list[int], vocab_size: int) -> torch.Tensor:
    key0, key1 = keys(seeds, positions)
    hashes = sampling.hash_token_ids(vocab_size, CPU)
    return sampling.gumbel_noise(hashes, key0[:, None], key1[:, None])


def uniform(seeds: list[int], positions: list[int], vocab_size: int) -> np.ndarray:
    """The noise undone: what it was made from."""
    return np.exp(-np.exp(-noise(seeds, positions, vocab_size).double().numpy()))


def draw(scores: torch.Tensor, seeds: list[int], positions: list[int], **cut: float) -> list[int]:
    rows, vocab_size = scores.shape
    threshold = sampling.truncation_threshold(
        scores,
        np.full(rows, cut.get("top_k", 0), np.int64),
        np.full(rows, cut.get("top_p", 1.0), np.float32),
        np.full(rows, cut.get("min_p", 0.0), np.float32),
    )
    hashes = sampling.hash_token_ids(vocab_size, CPU)
    return sampling.gumbel_argmax_(
        scores.clone(), threshold, hashes, *keys(seeds, positions)
    ).tolist()


# Noise


@given(
    seed=st.integers(0, 2**64 - 1),
    position=st.integers(0, 2**31),
    token_id=st.integers(0, 300_000),
)
@settings(max_examples=200, deadline=None)
def test_noise_is_the_documented_function(seed: int, position: int, token_id: int) -> None:
    hashed = np.array([reference_mix(token_id)], np.uint32).view(np.int32)
    made = sampling.gumbel_noise(torch.from_numpy(hashed), *keys([seed], [position])).item()
    expected = -math.log(-math.log(reference_uniform(seed, position, token_id)))
    # float32 logarithms: an ulp of log(u) near u = 1 is relative, so the sum stays within 1e-5.
    assert made == pytest.approx(expected, abs=1e-5, rel=1e-5)


def test_token_hashes_are_the_documented_function() -> None:
    made = sampling.hash_token_ids(1013, CPU).numpy().view(np.uint32)
    assert made.tolist() == [reference_mix(token_id) for token_id in range(1013)]


def test_noise_stays_within_its_bounds() -> None:
    for bits in (0, 2**23 - 1):
        u = np.float32((bits + 0.5) * 2.0**-23)
        assert 0 < u < 1
        assert u == (bits + 0.5) * 2.0**-23, "not exact in float32"
        assert sampling.MIN_NOISE < -math.log(-math.log(u)) < sampling.MAX_NOISE


def test_noise_is_uniform_over_tokens() -> None:
    values = uniform([1, 2**63 + 5, 0], [0, 7, 0], 100_000).ravel()
    counts, _ = np.histogram(values, bins=256, range=(0, 1))
    assert chi_square(counts, np.full(256, len(values) / 256)) < chi_square_bound(255)


@pytest.mark.parametrize(
    ("seeds", "positions"),
    [
        ([41, 42], [3, 3]),
        ([41, 41], [3, 4]),
        ([0, 1 << 32], [0, 0]),
        ([0, 1], [1, 0]),  # seed + position alike
        ([5, 5 << 32], [0, 0]),
        ([7, 6], [6, 7]),
    ],
)
def test_neighbouring_seeds_and_positions_share_nothing(
    seeds: list[int], positions: list[int]
) -> None:
    first, second = uniform(seeds, positions, 200_000)
    assert_independent(first, second)


def test_neighbouring_tokens_share_nothing() -> None:
    values = uniform([99], [12], 400_001)[0]
    for distance in (1, 2, 16, 256, 32_000):
        assert_independent(values[:-distance], values[distance:])


def test_positions_of_one_token_are_uniform_and_independent() -> None:
    values = uniform([1234] * 50_000, list(range(50_000)), 3)[:, 2]
    counts, _ = np.histogram(values, bins=64, range=(0, 1))
    assert chi_square(counts, np.full(64, len(values) / 64)) < chi_square_bound(63)
    assert_independent(values[:-1], values[1:])


def test_no_two_of_many_rows_have_equal_noise() -> None:
    pairs = [(seed, position) for seed in range(200) for position in range(200)]
    key0, key1 = keys([seed for seed, _ in pairs], [position for _, position in pairs])
    assert len(set(zip(key0.tolist(), key1.tolist(), strict=True))) == len(pairs)


def assert_independent(first: np.ndarray, second: np.ndarray) -> None:
    """16 x 16 cells filled alike, and no linear correlation."""
    cells, _, _ = np.histogram2d(first, second, bins=16, range=((0, 1), (0, 1)))
    assert chi_square(cells.ravel(), np.full(256, len(first) / 256)) < chi_square_bound(255)
    assert abs(np.corrcoef(first, second)[0, 1]) < 4.5 / math.sqrt(len(first))


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


def chi_square_bound(freedom: int) -> float:
    """Passed by chance about once in 100 000 (Wilson and Hilferty 1931)."""
    return freedom * (1 - 2 / (9 * freedom) + 4.3 * math.sqrt(2 / (9 * freedom))) ** 3


@pytest.mark.gpu
def test_devices_draw_the_same_tokens() -> None:
    cuda = torch.device("cuda")
    vocab_size, num_rows = 151_936, 16
    here, there = (sampling.hash_token_ids(vocab_size, device) for device in (CPU, cuda))
    assert torch.equal(here, there.cpu())
    key0, key1 = keys(list(range(num_rows)), list(range(num_rows)))
    apart = noise(list(range(num_rows)), list(range(num_rows)), vocab_size) - (
        sampling.gumbel_noise(there, key0.cuda()[:, None], key1.cuda()[:, None]).cpu()
    )
    assert apart.abs().max() < 1e-5
    scores = torch.randn(num_rows, vocab_size) * 4
    limits = [np.full(num_rows, 50), np.full(num_rows, 0.9, np.float32)]
    limits.append(np.full(num_rows, 0.01, np.float32))
    drawn = []
    for device, hashes in ((CPU, here), (cuda, there)):
        placed = scores.to(device)
        threshold = sampling.truncation_threshold(placed, *limits)
        made = sampling.gumbel_argmax_(
            placed.clone(), threshold, hashes, key0.to(device), key1.to(device)
        )
        drawn.append(made.tolist())
    assert drawn[0] == drawn[1]


# Truncation


@given(
    row=st.lists(st.integers(-40, 40), min_size=1, max_size=40),
    top_k=st.integers(0, 45),
    top_p=st.sampled_from([0.05, 0.3, 0.5, 0.9, 0.99, 1.0]),
    min_p=st.sampled_from([0.0, 0.01, 0.2, 1.0]),
)
@settings(max_examples=400, deadline=None)
def test_truncation_keeps_what_brute_force_keeps(
    row: list[int], top_k: int, top_p: float, min_p: float
) -> None:
    # Quarters tie often and are exact; the odd scale keeps sums off the boundary of top_p.
    scores = torch.tensor([[value / 4 * 1.0009765625 for value in row]])
    threshold = sampling.truncation_threshold(
        scores,
        np.array([top_k], np.int64),
        np.array([top_p], np.float32),
        np.array([min_p], np.float32),
    )
    kept = set(torch.nonzero(scores[0] >= threshold[0])[:, 0].tolist())
    expected = kept_tokens(scores[0].double().tolist(), top_k, top_p, min_p)
    if kept != expected:  # float32 may fall to the other side where a share meets top_p exactly
        weights = scores[0].double().softmax(0)
        if top_k:
            weights = torch.where(
                scores[0] >= scores[0].topk(min(top_k, len(row)))[0][-1], weights, 0
            )
        ordered = weights.sort(descending=True).values[: top_k or None]
        shares = ordered.cumsum(0) / ordered.sum()
        assert (shares - top_p).abs().min() < 1e-6


@pytest.mark.parametrize("spread", [0.01, 1.0, 6.0])
def test_long_nucleus_is_found_behind_the_guess(spread: float) -> None:
    scores = torch.randn(3, 2_000) * spread
    ones = np.full(3, 0.97, np.float32)
    threshold = sampling.truncation_threshold(scores, np.zeros(3, np.int64), ones, 0 * ones)
    for row, last in zip(scores.tolist(), threshold.tolist(), strict=True):
        kept = {token for token, score in enumerate(row) if score >= last}
        assert kept == kept_tokens(row, 0, 0.97, 0.0)


def test_rows_with_different_limits_do_not_mix() -> None:
    scores = torch.randn(64, 50) * 3
    top_k = np.array([random.choice([0, 1, 3, 50, 2**31 - 1]) for _ in range(64)], np.int64)
    top_p = np.array([random.choice([0.3, 0.8, 1.0]) for _ in range(64)], np.float32)
    min_p = np.array([random.choice([0.0, 0.1]) for _ in range(64)], np.float32)
    together = sampling.truncation_threshold(scores, top_k, top_p, min_p)
    for i in range(64):
        one = slice(i, i + 1)
        alone = sampling.truncation_threshold(scores[one], top_k[one], top_p[one], min_p[one])
        assert torch.equal(together[one], alone)


# What is drawn


@pytest.mark.parametrize(
    "cut",
    [{}, {"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.1}, {"top_k": 12, "top_p": 0.9, "min_p": 0.02}],
    ids=str,
)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_frequencies_are_those_of_the_distribution(
    cut: dict[str, float], temperature: float
) -> None:
    num_draws, vocab_size = 20_000, 30
    row = torch.randn(vocab_size, generator=torch.Generator().manual_seed(5)) * 1.5 / temperature
    seeds = [random.getrandbits(64) for _ in range(num_draws)]
    positions = [random.randrange(4096) for _ in range(num_draws)]
    drawn = draw(row.repeat(num_draws, 1), seeds, positions, **cut)
    kept = kept_tokens(
        row.tolist(), int(cut.get("top_k", 0)), cut.get("top_p", 1.0), cut.get("min_p", 0.0)
    )
    assert set(drawn) <= kept
    weights = np.array([math.exp(row[t]) if t in kept else 0.0 for t in range(vocab_size)])
    expected = weights / weights.sum() * num_draws
    counts = np.bincount(drawn, minlength=vocab_size)
    common = expected >= 5  # the rest is one cell, as the test asks for
    cells, means = list(counts[common]), list(expected[common])
    if expected[~common].sum() > 0:
        cells, means = [*cells, counts[~common].sum()], [*means, expected[~common].sum()]
    bound = chi_square_bound(len(cells) - 1) if len(cells) > 1 else 1e-9
    assert chi_square(np.array(cells), np.array(means)) <= bound


def test_one_seed_draws_fairly_over_its_positions() -> None:
    row = torch.tensor([0.0, 1.0, 2.0, -1.0])
    drawn = draw(row.repeat(20_000, 1), [7] * 20_000, list(range(20_000)))
    expected = row.softmax(0).numpy() * 20_000
    assert chi_square(np.bincount(drawn, minlength=4), expected) < chi_square_bound(3)


def test_a_row_draws_the_same_alone_as_among_others() -> None:
    scores = torch.randn(24, 3_000) * torch.rand(24, 1) * 8
    seeds, positions = [random.getrandbits(64) for _ in range(24)], list(range(24))
    together = draw(scores, seeds, positions)
    alone = [draw(scores[i : i + 1], seeds[i : i + 1], positions[i : i + 1])[0] for i in range(24)]
    assert together == alone


def test_noise_for_few_candidates_is_that_of_the_whole_row() -> None:
    scores = torch.randn(8, 5_000) * 30  # few tokens come near the best
    seeds = list(range(8))
    full = (scores + noise(seeds, seeds, 5_000)).argmax(-1).tolist()
    assert draw(scores, seeds, seeds) == full


def test_banned_tokens_are_never_drawn() -> None:
    scores = torch.full((500, 40), -math.inf)
    scores[:, 17] = -3.0
    assert draw(scores, list(range(500)), [0] * 500) == [17] * 500


# Penalties


@given(
    tokens=st.lists(st.integers(0, 9), max_size=30),
    num_prompt=st.integers(0, 30),
    repetition=st.sampled_from([0.5, 1.0, 1.3]),
    presence=st.sampled_from([-1.0, 0.0, 0.7]),
    frequency=st.sampled_from([-0.5, 0.0, 0.4]),
)
@settings(max_examples=100, deadline=None)
def test_penalties_are_those_of_a_plain_loop(
    tokens: list[int], num_prompt: int, repetition: float, presence: float, frequency: float
) -> None:
    prompt, output = tokens[:num_prompt], tokens[num_prompt:]
    logits = torch.linspace(-2, 3, 10)
    expected = logits.tolist()
    for token in range(10):
        if token in tokens:
            up = expected[token] > 0
            expected[token] = expected[token] / repetition if up else expected[token] * repetition
        expected[token] -= frequency * output.count(token) + presence * (token in output)
    made = sampling.apply_penalties(
        logits[None],
        torch.tensor([[output.count(token) for token in range(10)]], dtype=torch.int32),
        torch.tensor([[token in prompt for token in range(10)]]),
        torch.tensor([repetition]),
        torch.tensor([presence]),
        torch.tensor([frequency]),
    )
    assert made[0].tolist() == pytest.approx(expected, abs=1e-5)
