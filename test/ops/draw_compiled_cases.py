"""The kernels that draw tokens, compiled for sm_90; test_kernels.py runs this."""

import pytest
import torch
from compiled import compile_launches

from chitu_like.ops.draw import NUM_PARAMS
from chitu_like.ops.triton.draw import draw_tokens
from chitu_like.ops.triton.draw_tiling import FEW_ROWS, MANY_ROWS, SOME_ROWS, DrawTiling

TILINGS = [FEW_ROWS, SOME_ROWS, MANY_ROWS]


@pytest.mark.parametrize("tiling", TILINGS, ids=str)
@pytest.mark.parametrize(
    ("dtype", "vocab_size"),
    [(torch.bfloat16, 128_256), (torch.bfloat16, 151_936), (torch.float32, 151_936)],
)
def test_the_kernels_spill_nothing_and_round_as_the_reference_does(
    dtype: torch.dtype, vocab_size: int, tiling: DrawTiling
) -> None:
    def empty(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

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
