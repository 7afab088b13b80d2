"""The `triton` backend: its plan, and what it refuses; its kernels are tested by test_kernels.py."""

import sys

import numpy as np
import pytest
import torch
from tiny_model import tiny_options

from chitu_like.attention.base import AttentionSpec
from chitu_like.attention.triton import TritonBackend
from chitu_like.core.errors import UnsupportedError
from chitu_like.ops.attention_tiles import (
    MAX_HEAD_DIM,
    MIN_SIDE,
    TILINGS,
    cut_tiles,
    decode_tiles,
    tiling_for,
)
from chitu_like.worker.options import make_backend


def make_spec(device: str, head_dim: int = 64) -> AttentionSpec:
    return AttentionSpec(
        num_heads=4,
        num_kv_heads=2,
        head_dim=head_dim,
        windows=(None,),
        block_size=16,
        dtype=torch.bfloat16,
        device=torch.device(device),
    )


@pytest.mark.parametrize("rows", [16, 64])
@pytest.mark.parametrize("group", [1, 3, 16, 20])
def test_tiles_hold_every_row_of_every_chunk_once_and_the_longest_stand_first(
    group: int, rows: int
) -> None:
    query_lens, context_lens = [1, 1, 40, 1, 7, 64], [9, 90, 40, 33, 200, 64]
    tiles = cut_tiles(
        np.array(query_lens, np.int32),
        np.array(context_lens, np.int32),
        2,
        group=group,
        rows=rows,
    ).tolist()
    held = [
        (request, row % group, origin + row // group)
        for request, origin, prefix_len, context_len, first_row in tiles
        for row in range(first_row, first_row + rows)
        if prefix_len <= row // group < context_len
    ]
    starts = {2: 2, 3: 42, 4: 43, 5: 50}
    assert sorted(held) == [
        (request, head, place)
        for request, start in starts.items()
        for head in range(group)
        for place in range(start, start + query_lens[request])
    ]
    assert all(first_row % rows == 0 for *_, first_row in tiles)
    positions = [first_row // group for *_, first_row in tiles]
    assert positions == sorted(positions, reverse=True)


@pytest.mark.parametrize("rows", [16, 64])
@pytest.mark.parametrize("group", [1, 3, 4, 14, 16])
def test_decodes_as_chunks_have_the_tiles_of_chunks(group: int, rows: int) -> None:
    context_lens = [1, 2, 16, 17, 33, 100, 101]
    lens = np.array(context_lens, np.int32)
    cut = cut_tiles(np.ones_like(lens), lens, 0, group=group, rows=rows)
    tiles = decode_tiles(torch.from_numpy(lens), group=group, rows=rows)
    assert tiles.dtype == torch.int32
    assert {tuple(tile) for tile in cut.tolist()} <= {tuple(tile) for tile in tiles.tolist()}
    assert len(tiles) == len(lens) * (1 if rows % group == 0 else 2)
    for _, _, position, context_len, first_row in tiles.tolist():
        assert position == context_len - 1
        assert first_row % rows == 0


def test_decodes_alone_give_no_tiles() -> None:
    lens = np.array([1, 1], np.int32)
    assert cut_tiles(lens, lens, 2, group=4, rows=16).shape == (0, 5)


@pytest.mark.parametrize("head_dim", [64, 80, 128, MAX_HEAD_DIM])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shared_kib", [99, 163, 227])  # Ada, A100, Hopper
def test_tiles_fit_the_shared_memory_of_the_device(
    shared_kib: int, dtype: torch.dtype, head_dim: int
) -> None:
    measured = TILINGS[max(64, 1 << (head_dim - 1).bit_length()), dtype.itemsize]
    tiling = tiling_for(head_dim, dtype, shared_kib << 10)
    for tile, most in ((tiling.decode, measured.decode), (tiling.prefill, measured.prefill)):
        rows = tile.rows + 2 * tile.num_stages * tile.keys
        assert rows * head_dim * dtype.itemsize <= shared_kib << 10
        assert min(tile.rows, tile.keys) >= MIN_SIDE
        assert most.rows % tile.rows == most.keys % tile.keys == 0
    if shared_kib == 227:
        assert tiling == measured == tiling_for(head_dim, dtype)


def test_it_serves_cuda_devices_and_heads_that_fit() -> None:
    assert TritonBackend.supports(make_spec("cuda")) is None
    assert TritonBackend.supports(make_spec("cuda", 512)) == "head_dim 512 is more than 256"


def test_a_cpu_is_refused_in_one_line() -> None:
    with pytest.raises(UnsupportedError) as refusal:
        make_backend(tiny_options(attn_type="triton"))
    assert str(refusal.value) == (
        "infer.attn_type=triton cannot serve this model on cpu: its kernels need a CUDA device: "
        "use auto, or ref, which serves every model"
    )


def test_without_triton_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(UnsupportedError, match="pip install triton"):
        TritonBackend(make_spec("cuda"))
