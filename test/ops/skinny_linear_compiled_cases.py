"""Every candidate tile compiled for sm_90; test_kernels.py runs this."""

from dataclasses import replace

import pytest
import torch
from compiled import Compiled, compile_launches

from chitu_like.ops.linear_candidates import candidates, early_variants
from chitu_like.ops.linear_fused import Operand
from chitu_like.ops.linear_tiles import BUCKETS, Epilogue, LinearWork, SkinnyTile, padded_tokens
from chitu_like.ops.triton.skinny_linear import SkinnyLinear

SHARED_BYTES = 227 << 10  # that a program may have
OUT, IN = 4096, 4096
PLAIN = LinearWork()
WORKS = (
    PLAIN,
    LinearWork(has_norm=True),
    LinearWork(has_norm=True, epilogue=Epilogue.SILU_AND_MUL),
    LinearWork(epilogue=Epilogue.ADD),
)
NUM_PARTS = {
    1: 512,
    2: 512,
    4: 512,
}  # of squares, from tiles of 8 rows; from tiles of 64 for more tokens
# Buckets that are padded to as many tokens share their kernels; so do numbers of splits, but for one.
TILES = sorted(
    {
        (padded_tokens(tile, bucket), replace(tile, splits=min(tile.splits, 2)))
        for bucket in BUCKETS
        for tile in candidates(bucket, OUT, IN, num_multiprocessors=132)
    },
    key=str,
)


def compiled(work: LinearWork, num_tokens: int, tile: SkinnyTile) -> Compiled:
    def tensor(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    is_add = work.epilogue is Epilogue.ADD
    squares = tensor(NUM_PARTS.get(num_tokens, 64), num_tokens, dtype=torch.float32)
    operand = Operand(tensor(num_tokens, IN), squares if work.has_norm else None)
    kernel = SkinnyLinear(
        tensor(OUT, IN),
        None,
        tile,
        eps=1e-5,
        epilogue=work.epilogue,
        norm_weight=tensor(OUT) if is_add else None,
    )
    residual = tensor(num_tokens, OUT) if is_add else None
    (found,) = compile_launches(lambda: kernel(operand, residual))
    return found


@pytest.mark.parametrize(("num_tokens", "tile"), TILES, ids=str)
def test_a_candidate_spills_nothing_and_fits(num_tokens: int, tile: SkinnyTile) -> None:
    for work in WORKS:
        found = compiled(work, num_tokens, tile)
        assert found.spill_bytes == 0
        assert found.shared_bytes <= SHARED_BYTES


@pytest.mark.parametrize("num_tokens", [1, 16, 64])
def test_an_early_start_prefetches_before_it_waits_and_reads_x_after(num_tokens: int) -> None:
    tile = candidates(num_tokens, OUT, IN, num_multiprocessors=132)[0]
    *shorter, longest = early_variants(tile, IN)
    cases = [(PLAIN, early) for early in shorter] + [(work, longest) for work in WORKS]
    for work, early in cases:
        ptx = compiled(work, num_tokens, early).ptx
        wait = ptx.index("griddepcontrol.wait")
        assert ptx.index("griddepcontrol.launch_dependents") < wait
        assert ("prefetch.global.L2" in ptx[:wait]) == (early.prefetch > 0)
        assert not any(load in ptx[:wait] for load in ("ld.global", "cp.async"))


def test_without_tensor_cores_the_loop_has_no_barrier() -> None:
    for tile in candidates(1, OUT, IN, num_multiprocessors=132):
        if not tile.uses_dot and tile.num_stages == 1:
            ptx = compiled(PLAIN, 1, tile).ptx
            loop = ptx[ptx.index("Loop Header") :]
            body = loop[: loop.index("bra")]
            assert "ld.global" in body
            assert "bar.sync" not in body
