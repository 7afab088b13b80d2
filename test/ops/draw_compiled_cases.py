"""The kernels that draw tokens, compiled for sm_90; test_kernels.py runs this."""

import pytest
import torch
from compiled import compile_launches
from ops.draw_cases import may_win_kernel, noise_kernel, threshold_kernel

from chitu_like.ops.draw import NUM_PARAMS
from chitu_like.ops.triton.draw import draw_tokens
from chitu_like.ops.triton.draw_tiling import TILINGS, DrawTiling


def empty(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


@pytest.mark.parametrize("tiling", TILINGS, ids=str)
@pytest.mark.parametrize(
    ("dtype", "vocab_size"),
    [(torch.bfloat16, 128_256), (torch.bfloat16, 151_936), (torch.float32, 151_936)],
)
def test_the_kernels_spill_nothing_and_round_as_the_reference_does(
    dtype: torch.dtype, vocab_size: int, tiling: DrawTiling
) -> None:
    logits, params = empty(2, vocab_size, dtype=dtype), empty(9, NUM_PARAMS, dtype=torch.int32)
    kernels = compile_launches(
        lambda: draw_tokens(logits, params, empty(2), empty(2), empty(9), tiling)
    )
    assert len(kernels) == 4
    for kernel in kernels:
        assert kernel.spill_bytes == 0, kernel.name
        # What the scan sums is no more than a guide.
        assert ("div.rn.f32" in kernel.ptx) == (kernel.name != "scan_kernel"), kernel.name
        assert "lg2.approx" not in kernel.ptx, kernel.name


def test_the_kernels_of_the_cases_compile() -> None:
    row, found = empty(NUM_PARAMS, dtype=torch.int32), empty(1024, dtype=torch.int32)
    floats = empty(1024, dtype=torch.float32)

    def launch() -> None:
        noise_kernel[(1,)](row, 2**31 - 2, found, floats, COUNT=1024)
        may_win_kernel[(1,)](row, floats, 0.1, floats, found, COUNT=1024)
        threshold_kernel[(1,)](floats, row, found, 150, CHUNK=64, BLOCK=256)

    assert len(compile_launches(launch)) == 3
