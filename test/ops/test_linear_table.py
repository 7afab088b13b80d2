"""The table that decides where the skinny kernel is taken: lookup, file, dispatch, candidates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from chitu_like.core.errors import ConfigError
from chitu_like.ops.linear import PlainLinear, TabledLinear, tabled_linear
from chitu_like.ops.linear_candidates import MIN_PREFETCH, candidates, early_variants
from chitu_like.ops.linear_fused import Operand
from chitu_like.ops.linear_table import FOLDER, LinearTable, TableRow, table_file, table_for
from chitu_like.ops.linear_tiles import (
    ALL_WORK,
    BUCKETS,
    MAX_TOKENS,
    Epilogue,
    LinearWork,
    SkinnyTile,
    token_bucket,
)

TILE = SkinnyTile(rows=8, columns=256, splits=2, num_warps=1, num_stages=1, uses_dot=False)
ROW = TableRow(
    work=LinearWork(),
    out_features=48,
    in_features=32,
    dtype="float32",
    num_tokens=4,
    tile=TILE,
    tile_us=2.0,
    other_us=3.0,
)
SHAPES = [(6144, 4096), (1024, 3072), (128256, 4096), (64, 64), (7, 9)]


def weight_of(row: TableRow) -> Tensor:
    return torch.randn(row.out_features, row.in_features)


@pytest.mark.parametrize(
    ("num_tokens", "bucket"),
    [(1, 1), (3, 4), (4, 4), (5, 8), (9, 16), (16, 16), (17, 32), (33, 64), (64, 64)],
)
def test_tokens_take_the_next_bucket(num_tokens: int, bucket: int) -> None:
    assert token_bucket(num_tokens) == bucket
    assert bucket in BUCKETS


def test_a_row_is_found_by_work_shape_dtype_and_bucket_alone() -> None:
    table, weight = LinearTable([ROW]), weight_of(ROW)
    assert table.row(ROW.work, weight, 3) is ROW
    assert table.row(ROW.work, weight, 5) is None
    assert table.row(ROW.work, weight, 0) is None
    assert table.row(ROW.work, weight, MAX_TOKENS + 1) is None
    assert table.row(LinearWork(has_norm=True), weight, 4) is None
    assert table.row(ROW.work, weight.T, 4) is None
    assert table.row(ROW.work, weight.bfloat16(), 4) is None
    assert table.row(ROW.work, torch.empty(0), 4) is None


def test_the_kernel_is_taken_only_where_it_is_faster() -> None:
    weight = weight_of(ROW)
    assert LinearTable([ROW]).faster_tile(ROW.work, weight, 4) == TILE
    slower = replace(ROW, tile_us=3.0)
    assert LinearTable([slower]).faster_tile(ROW.work, weight, 4) is None
    assert LinearTable([ROW]).merged([slower]).faster_tile(ROW.work, weight, 4) is None


@pytest.mark.parametrize("work", ALL_WORK, ids=lambda work: work.name)
def test_a_file_says_what_was_written(work: LinearWork) -> None:
    weight = weight_of(ROW)
    row = replace(ROW, work=work, tile=replace(TILE, starts_early=True, prefetch=512))
    text = LinearTable([row, ROW]).to_json({"device": "NVIDIA H200"})
    table = LinearTable.from_json(text, "a.json")
    assert table.row(work, weight, 4) == (row if work != ROW.work else ROW)
    assert table.to_json({"device": "NVIDIA H200"}) == text


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ('"tile_us": 2.0, ', ""),
        ('"tile_us"', '"tile_ms"'),
        ('"work": "linear"', '"work": "conv"'),
        ('"rows": 8', '"rosw": 8'),
        ('"dtype"', '"colour": 1, "dtype"'),
        ("{", "["),
    ],
)
def test_a_damaged_file_is_named(right: str, wrong: str) -> None:
    text = LinearTable([ROW]).to_json({})
    assert right in text
    with pytest.raises(ConfigError, match=r"^here\.json: no table of linear layers .*tune_linear"):
        LinearTable.from_json(text.replace(right, wrong), "here.json")


def test_devices_have_files_of_their_own_and_a_cpu_has_none() -> None:
    assert table_file("NVIDIA H200") == FOLDER / "nvidia_h200.json"
    assert table_for(torch.device("cpu")).row(ROW.work, weight_of(ROW), 4) is None


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.json")), ids=lambda file: file.name)
def test_a_table_that_is_shipped_can_be_read_and_its_tiles_serve(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    for row in LinearTable.from_json(text, str(file)).rows():
        assert row.num_tokens in BUCKETS
        assert row.tile.serves(row.num_tokens)


def test_an_empty_table_leaves_torchs_product() -> None:
    assert isinstance(tabled_linear(weight_of(ROW), None, LinearTable()), PlainLinear)
    slower = LinearTable([replace(ROW, tile_us=9.0)])
    assert isinstance(tabled_linear(weight_of(ROW), None, slower), PlainLinear)


def test_the_number_of_tokens_alone_decides_what_is_called() -> None:
    weight, calls = torch.randn(6, 5), []

    def kernel(x: Operand, residual: Tensor | None) -> Operand:
        assert residual is None
        calls.append(len(x.values))
        return Operand(x.values @ weight.T)

    linear = TabledLinear(weight, None, {4: kernel, 16: kernel, 64: kernel})
    for num_tokens in (0, 1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 33, 64, 65):
        x = torch.randn(num_tokens, 5)
        torch.testing.assert_close(linear(x), x @ weight.T)
    assert calls == [3, 4, 9, 16, 33, 64]
    torch.testing.assert_close(linear(torch.ones(1, 4, 5)), torch.ones(1, 4, 5) @ weight.T)
    assert len(calls) == 6


@pytest.mark.parametrize("num_tokens", BUCKETS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_candidates_serve_their_tokens_and_are_few_and_different(
    shape: tuple[int, int], num_tokens: int
) -> None:
    tiles = candidates(num_tokens, *shape, num_multiprocessors=132)
    assert 8 <= len(tiles) == len(set(tiles)) <= 16
    for tile in tiles:
        assert tile.serves(num_tokens)
        assert tile.splits == 1 or tile.splits * tile.columns <= shape[1]
        assert not tile.starts_early


@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_early_variants_prefetch_no_more_than_a_programs_own(shape: tuple[int, int]) -> None:
    for tile in candidates(1, *shape, num_multiprocessors=132):
        for early in early_variants(tile, shape[1]):
            assert early == replace(tile, starts_early=True, prefetch=early.prefetch)
            assert early.prefetch == 0 or early.prefetch >= MIN_PREFETCH
            assert early.prefetch & (early.prefetch - 1) == 0
            assert early.prefetch * tile.splits <= shape[1]


def test_names_of_work_are_read_back() -> None:
    assert [LinearWork.from_name(work.name) for work in ALL_WORK] == list(ALL_WORK)
    gate_up = LinearWork(has_norm=True, epilogue=Epilogue.SILU_AND_MUL)
    assert gate_up.name == "norm+linear+silu_and_mul"
    with pytest.raises(ValueError, match="'norm' is none of linear, linear\\+silu_and_mul"):
        LinearWork.from_name("norm")
