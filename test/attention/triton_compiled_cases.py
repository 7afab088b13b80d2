"""The paged kernels compiled for sm_90; test_kernels.py runs this."""

import pytest
import torch
from compiled import Compiled, compile_launches
from torch import Tensor

from chitu_like.ops.attention_tiles import TILE_FIELDS, tiling_for
from chitu_like.ops.decode_splits import Cut, Splits
from chitu_like.ops.flat_tables import FlatTables
from chitu_like.ops.triton.decode_splits import cut_splits
from chitu_like.ops.triton.flat_tables import flatten_tables
from chitu_like.ops.triton.paged_decode import paged_decode
from chitu_like.ops.triton.paged_prefill import paged_prefill

META = torch.device("meta")
NUM_HEADS, NUM_KV_HEADS = 32, 8
SPILLS = {256: 72}
"""Bytes that prefill is known to spill, by head_dim: a tile takes all registers there are."""


def empty(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=META)


def empty_ids(*shape: int) -> Tensor:
    return empty(*shape, dtype=torch.int32)


def decode_of(num_reqs: int, head_dim: int, window: int | None, *, pdl: bool) -> list[Compiled]:
    dtype = torch.bfloat16
    q = empty(num_reqs, NUM_HEADS, head_dim, dtype=dtype)
    cache = empty(99, 16, NUM_KV_HEADS, head_dim, dtype=dtype)
    tile = tiling_for(head_dim, dtype).decode
    splits = Splits.allocate(
        Cut(keys=tile.keys, wanted=66),
        (window,),
        empty_ids(1),
        num_reqs=num_reqs,
        max_tokens=4096,
        num_heads=NUM_HEADS,
        head_dim=head_dim,
    )
    return compile_launches(
        lambda: [
            cut_splits(empty_ids(num_reqs), splits),
            paged_decode(
                q,
                cache,
                cache,
                empty_ids(num_reqs, 64),
                torch.empty_like(q),
                splits,
                scale=0.1,
                window=window,
                tile=tile,
                pdl=pdl,
            ),
        ]
    )


@pytest.mark.parametrize("window", [None, 4096])
@pytest.mark.parametrize(
    ("head_dim", "num_reqs", "pdl"),
    [(64, 4, False), (128, 4, False), (256, 4, False), (128, 4, True), (128, 256, False)],
)
def test_decode_spills_nothing(head_dim: int, num_reqs: int, pdl: bool, window: int | None) -> None:
    cut, *kernels = decode_of(num_reqs, head_dim, window, pdl=pdl)
    assert cut.spill_bytes == 0
    assert len(kernels) == 2
    for kernel in kernels:
        assert kernel.spill_bytes == 0, kernel.name
        assert ("griddepcontrol.wait" in kernel.ptx) == pdl, kernel.name


@pytest.mark.parametrize("window", [None, 4096])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_prefill_spills_little_and_multiplies_with_wgmma(head_dim: int, window: int | None) -> None:
    q = empty(300, NUM_HEADS, head_dim, dtype=torch.bfloat16)
    cache = empty(99, 16, NUM_KV_HEADS, head_dim, dtype=torch.bfloat16)
    (kernel,) = compile_launches(
        lambda: paged_prefill(
            q,
            cache,
            cache,
            empty_ids(2, 64),
            empty_ids(6, TILE_FIELDS),
            torch.empty_like(q),
            scale=0.1,
            window=window,
            tile=tiling_for(head_dim, torch.bfloat16).prefill,
        )
    )
    assert kernel.spill_bytes <= SPILLS.get(head_dim, 0)
    assert "wgmma.mma_async" in kernel.ptx


def test_tables_are_flattened_without_spills() -> None:
    (kernel,) = compile_launches(
        lambda: flatten_tables(
            empty_ids(256, 2560), empty_ids(256), 16, FlatTables.empty(256, 9999, META)
        )
    )
    assert kernel.spill_bytes == 0
