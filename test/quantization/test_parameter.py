"""A parameter takes its own part of a checkpoint's tensor, and reads no more than that."""

import pytest
import torch
from torch import Tensor

from chitu_like.core.errors import CheckpointError
from chitu_like.quantization.parameter import Part, Shard, WeightParameter, stacked_layouts


class CountingTensor:
    """A lazy tensor that says how much of it was read."""

    def __init__(self, whole: Tensor) -> None:
        self.whole, self.shape, self.dtype, self.num_read = whole, whole.shape, whole.dtype, 0

    def __getitem__(self, index: tuple[slice, ...]) -> Tensor:
        found = self.whole[index]
        self.num_read += found.numel()
        return found


def make(parts: dict[Part, Shard], *rest: Shard) -> WeightParameter:
    shape, layouts = stacked_layouts(parts, rest)
    return WeightParameter(torch.full(shape, torch.nan), layouts)


Q, K = torch.arange(48.0).view(8, 6), torch.arange(100.0, 124.0).view(4, 6)


def test_parts_stack_in_order() -> None:
    parameter = make({"q": Shard.whole(8), "k": Shard.whole(4)}, Shard.whole(6))
    parameter.load("k", K, "k")
    parameter.load("q", Q.to(torch.float64), "q")
    assert torch.equal(parameter, torch.cat((Q, K)))
    assert not parameter.requires_grad


def test_a_stacked_tensor_fills_all_parts() -> None:
    parts = {"q": Shard.of(8, 1, 2), "k": Shard.of(4, 1, 2)}
    parameter = make(parts, Shard.whole(6))
    parameter.load("qk", torch.cat((Q, K)))
    assert torch.equal(parameter, torch.cat((Q[4:], K[2:])))


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_ranks_together_hold_the_whole_and_read_it_once(num_ranks: int) -> None:
    rows, columns, num_read = [], [], 0
    for rank in range(num_ranks):
        source = CountingTensor(Q)
        by_rows = make({None: Shard.of(8, rank, num_ranks)}, Shard.whole(6))
        by_rows.load("q", source)
        rows.append(by_rows.data)
        num_read += source.num_read
    assert torch.equal(torch.cat(rows), Q)
    assert num_read == Q.numel()
    for rank in range(min(num_ranks, 2)):
        by_columns = make({None: Shard.whole(8)}, Shard.of(6, rank, min(num_ranks, 2)))
        by_columns.load("q", Q)
        columns.append(by_columns.data)
    assert torch.equal(torch.cat(columns, 1), Q)


def test_another_shape_is_refused_by_name() -> None:
    parameter = make({"q": Shard.whole(8), "k": Shard.whole(4)}, Shard.whole(6))
    with pytest.raises(CheckpointError, match=r"wk has shape \[8, 6\], must have \[4, 6\]"):
        parameter.load("wk", Q, "k")


@pytest.mark.parametrize(
    ("num_rows", "sizes"), [(8, [2, 2, 2, 2]), (7, [2, 2, 2, 1]), (5, [2, 2, 1, 0])]
)
def test_padded_shards_are_equal_in_memory_and_hold_every_row_once(num_rows, sizes) -> None:
    shards = [Shard.padded(num_rows, rank, 4) for rank in range(4)]
    assert [shard.size for shard in shards] == sizes
    assert {shard.num_held for shard in shards} == {2}
    held = []
    for shard in shards:
        parameter = make({None: shard}, Shard.whole(6))
        parameter.load("q", Q[:num_rows])
        assert parameter[shard.size :].isnan().all(), "padding was written"
        assert parameter.layouts[None].num_elements == shard.size * 6
        held.append(parameter.data[: shard.size])
    assert torch.equal(torch.cat(held), Q[:num_rows])
