"""Splits of decodes: every key that a token sees in one split, all about as long, never more than fit.

test_kernels.py runs this file in Triton's interpreter. By hand: `TRITON_INTERPRET=1 pytest
test/ops/decode_splits_cases.py` on a CPU, and without the variable on a CUDA device.
"""

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from chitu_like.ops.decode_splits import UNBOUNDED, Cut, Splits
from chitu_like.ops.decode_splits import cut_splits as reference
from chitu_like.ops.triton import decode_splits as twin
from chitu_like.ops.triton.decode_splits import cut_splits
from chitu_like.ops.triton.paged_attention import is_interpreted

DEVICE = "cpu" if is_interpreted() else "cuda"
WINDOWS = (None, 40)
KEYS = 16
LENGTHS: dict[str, list[int]] = {
    "nothing": [0],
    "one token": [1],
    "one tile": [KEYS],
    "one long": [4000],
    "padding": [300, 17, 1, 1, 1],
    "huge and tiny": [5000, *[1] * 9],
    "tiny and huge": [*[3] * 9, 0, 5000],
    "equal": [1024] * 8,
    "none at all": [0, 0, 0],
    "more than are summed at once": [*range(0, 600, 15), 7, 900],
}
CUTS = [
    Cut(keys=KEYS, wanted=1),
    Cut(keys=KEYS, wanted=33),
    Cut(keys=KEYS, wanted=512),
    Cut(keys=KEYS, min_tiles=1),
    Cut(keys=KEYS, min_tiles=8),
]


def cut_by(
    function: Callable[[Tensor, Splits], None], cut: Cut, context_lens: list[int], device: str
) -> Splits:
    splits = Splits.allocate(
        cut,
        WINDOWS,
        torch.tensor([window or 0 for window in WINDOWS], dtype=torch.int32, device=device),
        num_reqs=len(context_lens),
        max_tokens=max(context_lens),
        num_heads=2,
        head_dim=3,
    )
    splits.table.fill_(-7)
    function(torch.tensor(context_lens, dtype=torch.int32, device=device), splits)
    return splits


def check(splits: Splits, context_lens: list[int]) -> None:
    """Raises where a key is in no split or in two, or splits are uneven."""
    cut = splits.cut
    for window, table, spans in zip(
        splits.windows, splits.table.tolist(), splits.spans.tolist(), strict=True
    ):
        total, lengths, row = 0, [], 0
        for request, (context_len, (start, count)) in enumerate(
            zip(context_lens, spans, strict=True)
        ):
            assert start == row
            low = max(context_len - (window or context_len), 0)
            at = low
            for name, begin, end, of in table[start : start + count]:
                assert (name, begin, of) == (request, at, count)
                assert begin < end or (context_len == begin == end == 0 and count == 1)
                assert end == context_len or end % KEYS == 0
                at = end
                lengths.append(-(-end // KEYS) - begin // KEYS)
            assert at == context_len
            row = start + count
            total += -(-context_len // KEYS) - low // KEYS
            if cut.wanted == UNBOUNDED:  # it depends on its own length alone
                assert count == max(1, -(-(-(-context_len // KEYS) - low // KEYS) // cut.min_tiles))
        assert all(name == -1 for name, *_ in table[row:])
        assert max(lengths) <= max(cut.min_tiles, -(-total // cut.wanted))
        assert row <= cut.most(len(context_lens), max(context_lens)) == len(table)


@pytest.fixture(autouse=True)
def _few_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a program takes several turns without hundreds of requests."""
    monkeypatch.setattr(twin, "LANES", 16)


@pytest.mark.slow
@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("context_lens", LENGTHS.values(), ids=LENGTHS)
def test_awkward_lengths_are_cut_as_by_the_reference(context_lens: list[int], cut: Cut) -> None:
    check_twin(context_lens, cut)


def test_splits_are_those_of_the_reference() -> None:
    check_twin(LENGTHS["tiny and huge"], Cut(keys=KEYS, wanted=33))


def check_twin(context_lens: list[int], cut: Cut) -> None:
    expected = cut_by(reference, cut, context_lens, "cpu")
    check(expected, context_lens)
    splits = cut_by(cut_splits, cut, context_lens, DEVICE)
    assert torch.equal(splits.spans.cpu(), expected.spans)
    for table, wanted, spans in zip(splits.table, expected.table, expected.spans, strict=True):
        num_splits = int(spans[-1].sum())
        assert torch.equal(table[:num_splits].cpu(), wanted[:num_splits])
        assert (table[num_splits:, 0] == -1).all()


def random_lens() -> list[int]:
    longest = random.choice((3, 40, 700, 9000))
    return [random.randint(0, longest) for _ in range(random.choice((1, 2, 7, 64, 257)))]


def random_cut() -> Cut:
    if random.random() < 0.3:
        return Cut(keys=KEYS, min_tiles=random.randint(1, 9))
    return Cut(keys=KEYS, wanted=random.randint(1, 600))
