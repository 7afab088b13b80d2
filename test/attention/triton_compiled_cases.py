"""The paged kernels compiled for sm_90; test_kernels.py runs this."""

import pytest
import torch
from compiled import Compiled, compile_launches
from torch import Tensor

from chitu_like.ops.attention_tiles import TILE_FIELDS, Splits, tiling_for
from chitu_like.ops.flat_tables import FlatTables
from chitu_like.ops.triton.flat_tables import flatten_tables
from chitu_like.ops.triton.paged_decode import paged_decode
from chitu_like.ops.triton.paged_prefill import paged_prefill

META = torch.device("meta")
NUM_HEADS, NUM_KV_HEADS = 32, 8


def empty(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=META)


def empty_ids(*shape: int) -> Tensor:
    return empty(*shape, dtype=torch.int32)


def decode_of(
    head_dim: int, dtype: torch.dtype, window: int | None, **splits: int | bool
) -> list[Compiled]:
    q = empty(4, NUM_HEADS, head_dim, dtype=dtype)
    cache = empty(99, 16, NUM_KV_HEADS, head_dim, dtype=dtype)
    pdl = bool(splits.pop("pdl", False))
    room = Splits.allocate(
        16, num_reqs=4, num_heads=NUM_HEADS, head_dim=head_dim, device=META, **splits
    )
    return compile_launches(
        lambda: paged_decode(
            q,
            cache,
            cache,
            empty_ids(4, 64),
            empty_ids(4),
            torch.empty_like(q),
            room,
            scale=0.1,
            window=window,
            tile=tiling_for(head_dim, dtype).decode,
            pdl=pdl,
        )
    )


@pytest.mark.parametrize("window", [None, 4096])
@pytest.mark.parametrize(
    ("head_dim", "splits"),
    [
        (64, {}),
        (128, {}),
        (256, {}),
        (128, {"pdl": True}),
        (128, {"tokens": 2048}),
    ],
)
def test_decode_spills_nothing(head_dim: int, splits: dict[str, int], window: int | None) -> None:
    kernels = decode_of(head_dim, torch.bfloat16, window, **splits)
    assert len(kernels) == 2
    for kernel in kernels:
        assert kernel.spill_bytes == 0, kernel.name
        assert ("griddepcontrol.wait" in kernel.ptx) == ("pdl" in splits), kernel.name


@pytest.mark.parametrize("window", [None, 4096])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_prefill_spills_nothing_and_multiplies_with_wgmma(
    head_dim: int, window: int | None
) -> None:
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
    assert kernel.spill_bytes == 0
    assert "wgmma.mma_async" in kernel.ptx


def test_tables_are_flattened_without_spills() -> None:
    (kernel,) = compile_launches(
        lambda: flatten_tables(
            empty_ids(256, 2560), empty_ids(256), 16, FlatTables.empty(256, 9999, META)
        )
    )
    assert kernel.spill_bytes == 0
