"""Splits of decodes by the reference, in many random batches; its twin is tested by test_kernels.py."""

import pytest
from ops.decode_splits_cases import CUTS, KEYS, LENGTHS, check, cut_by, random_cut, random_lens

from chitu_like.ops.decode_splits import Cut, cut_splits


def test_every_key_is_in_one_split_and_there_is_room_for_all() -> None:
    for _ in range(150):
        context_lens = random_lens()
        check(cut_by(cut_splits, random_cut(), context_lens, "cpu"), context_lens)


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("context_lens", LENGTHS.values(), ids=LENGTHS)
def test_awkward_lengths_are_cut(context_lens: list[int], cut: Cut) -> None:
    check(cut_by(cut_splits, cut, context_lens, "cpu"), context_lens)


def test_a_batch_of_equal_lengths_has_as_many_splits_as_are_wanted() -> None:
    splits = cut_by(cut_splits, Cut(keys=KEYS, wanted=64), [64 * KEYS] * 8, "cpu")
    assert splits.spans[0, :, 1].tolist() == [8] * 8


def test_one_request_among_short_ones_is_cut_as_finely_as_the_batch_allows() -> None:
    splits = cut_by(cut_splits, Cut(keys=KEYS, wanted=10), [KEYS, 100 * KEYS, KEYS], "cpu")
    assert splits.spans[0, :, 1].tolist() == [1, 10, 1]


def test_where_no_request_can_have_two_splits_there_is_nothing_to_merge() -> None:
    splits = cut_by(cut_splits, Cut(keys=KEYS, min_tiles=4), [4 * KEYS, 1], "cpu")
    assert not splits.has_merge
    assert splits.table.shape[1] == 2
