"""The decoder's kernels compiled for sm_90; test_kernels.py runs this."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from compiled import compile_launches
from torch import Tensor

from chitu_like.ops.rope_store import HeadNorms
from chitu_like.ops.rotary import Rotation
from chitu_like.ops.triton import launch
from chitu_like.ops.triton.activation import act_and_mul
from chitu_like.ops.triton.embedding import embed_rms_norm
from chitu_like.ops.triton.kv_store import kv_store
from chitu_like.ops.triton.norm import add_rms_norm, layer_norm, rms_norm
from chitu_like.ops.triton.rope_store import qk_norm_rope_store
from chitu_like.ops.triton.rotary import rotation

EPS = 1e-5


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def empty_ids(count: int) -> Tensor:
    return empty(count, dtype=torch.int64)


def norms_of(width: int, dtype: torch.dtype) -> None:
    x, weight = empty(1, width, dtype=dtype), empty(width, dtype=dtype)
    rms_norm(x, weight, EPS)
    add_rms_norm(x, x, weight, EPS)
    layer_norm(x, weight, weight, EPS)
    embed_rms_norm(empty_ids(1), empty(9, width, dtype=dtype), weight, EPS)


def gates(dtype: torch.dtype) -> None:
    for name in ("silu", "gelu", "gelu_new", "relu"):
        act_and_mul(empty(1, 28672, dtype=dtype), name)


def heads_of(
    head_dim: int, rotary_dim: int, heads: tuple[int, int], interleaved: bool, dtype: torch.dtype
) -> None:
    num_heads, num_kv_heads = heads
    cache = empty(9, 16, num_kv_heads, head_dim, dtype=dtype)
    turn, weight = empty(1, 1, rotary_dim, dtype=dtype), empty(head_dim, dtype=dtype)
    qkv = empty(1, (num_heads + 2 * num_kv_heads) * head_dim, dtype=dtype)
    for norms in (None, HeadNorms(weight, weight, EPS)):
        angles = Rotation(turn, turn)
        qk_norm_rope_store(qkv, norms, angles, interleaved, cache, cache, empty_ids(1))
    k = qkv.view(1, -1, head_dim)[:, :num_kv_heads]
    kv_store(k, k, cache, cache, empty_ids(1))
    frequencies = empty(rotary_dim // 2, dtype=torch.float32)
    rotation(empty_ids(9), frequencies, interleaved=interleaved, scale=1.0, dtype=dtype)


HALF, FULL = torch.bfloat16, torch.float32
CALLS: dict[str, Callable[[], None]] = {
    "norms-60": lambda: norms_of(60, HALF),
    "norms-1024": lambda: norms_of(1024, HALF),
    "norms-4096": lambda: norms_of(4096, HALF),
    "norms-16384": lambda: norms_of(16384, HALF),
    "norms-float32": lambda: norms_of(8192, FULL),
    "gates": lambda: gates(HALF),
    "gates-float32": lambda: gates(FULL),
    "heads-llama3-8b": lambda: heads_of(128, 128, (32, 8), False, HALF),
    "heads-glm4-9b": lambda: heads_of(128, 64, (32, 2), True, HALF),
    "heads-qwen2-0.5b": lambda: heads_of(64, 64, (14, 2), False, HALF),
    "heads-256": lambda: heads_of(256, 256, (16, 16), False, HALF),
    "heads-80": lambda: heads_of(80, 32, (20, 4), False, torch.float16),
    "heads-float32": lambda: heads_of(128, 128, (16, 8), True, FULL),
}


@pytest.mark.parametrize("is_dependent", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_the_kernels_compile_for_hopper_without_spills(
    name: str, is_dependent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:

    monkeypatch.setattr(launch, "IS_DEPENDENT", is_dependent)
    monkeypatch.setattr(launch, "_can_depend", lambda _: True)
    for kernel in compile_launches(CALLS[name]):
        assert kernel.spill_bytes == 0, kernel
        assert ("griddepcontrol.wait" in kernel.ptx) == is_dependent
