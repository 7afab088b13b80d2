"""The `triton` backend: its kernels in Triton's interpreter, its plan, and what it refuses."""

import importlib.util
import sys

import numpy as np
import pytest
import torch
from interpreter import needs_interpreter, run_cases
from tiny_model import tiny_options

from chitu_like.attention.base import AttentionSpec
from chitu_like.attention.triton import TritonBackend
from chitu_like.core.errors import UnsupportedError
from chitu_like.ops.attention_tiles import cut_tiles
from chitu_like.worker.options import make_backend

CASES = "test/attention/triton_cases.py"
COMPILED_CASES = "test/attention/triton_compiled_cases.py"


needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs triton: pip install triton"
)


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


@needs_interpreter
def test_the_kernels_compute_what_ref_does() -> None:
    run_cases(CASES, "-m", "not slow", interpreted=True)


@needs_interpreter
@pytest.mark.slow
def test_the_kernels_compute_what_ref_does_for_every_shape() -> None:
    run_cases(CASES, "-m", "slow", interpreted=True)


@needs_triton
@pytest.mark.slow
def test_the_kernels_compile_for_hopper() -> None:
    run_cases(COMPILED_CASES, interpreted=False)


@pytest.mark.gpu
def test_the_compiled_kernels_compute_what_ref_does_for_every_shape() -> None:
    run_cases(CASES, "--slow", interpreted=False)


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


def test_decodes_alone_give_no_tiles() -> None:
    lens = np.array([1, 1], np.int32)
    assert cut_tiles(lens, lens, 2, group=4, rows=16).shape == (0, 5)


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
