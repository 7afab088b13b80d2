"""FlashAttention 2 and 3 as their documentation describes them, in torch on a CPU."""

from __future__ import annotations

from importlib.machinery import ModuleSpec
from types import ModuleType

import torch
from attention.fake_flashinfer import attention
from torch import Tensor

NO_WINDOW = (-1, -1)


def make_module(version: int) -> ModuleType:
    """A module to stand in sys.modules for `flash_attn` (2) or `flash_attn_interface` (3)."""
    name = {2: "flash_attn", 3: "flash_attn_interface"}[version]
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    if version == 2:
        vars(module).update(flash_attn_with_kvcache=with_cache_2, flash_attn_varlen_func=varlen_2)
    else:
        vars(module).update(flash_attn_with_kvcache=with_cache_3)
    return module


def with_cache_2(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    cache_seqlens: Tensor,
    block_table: Tensor,
    softmax_scale: float,
    causal: bool = False,
    window_size: tuple[int, int] = NO_WINDOW,
) -> Tensor:
    """[batch, tokens, heads, head_dim] in and out."""
    assert k_cache.shape[1] % 256 == 0, "Paged KV cache block size must be divisible by 256"
    return _padded(q, (k_cache, v_cache), cache_seqlens, block_table, softmax_scale, window_size)


def varlen_2(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    softmax_scale: float,
    causal: bool = False,
    window_size: tuple[int, int] = NO_WINDOW,
    block_table: Tensor,
) -> Tensor:
    """[tokens, heads, head_dim] in and out."""
    assert causal
    assert k.shape[1] % 256 == 0, "Paged KV cache block size must be divisible by 256"
    lens = cu_seqlens_k.diff()
    assert max_seqlen_k == int(lens.max())
    assert max_seqlen_q == int(cu_seqlens_q.diff().max())
    return _packed(q, (k, v), cu_seqlens_q, lens, block_table, softmax_scale, window_size)


def with_cache_3(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    cache_seqlens: Tensor,
    page_table: Tensor,
    cu_seqlens_q: Tensor | None = None,
    max_seqlen_q: int | None = None,
    softmax_scale: float,
    causal: bool = False,
    window_size: tuple[int, int] = NO_WINDOW,
) -> Tensor:
    """[batch, tokens, heads, head_dim] in and out, or [tokens, heads, head_dim] with cu_seqlens_q."""
    assert causal
    cache = (k_cache, v_cache)
    if cu_seqlens_q is None:
        return _padded(q, cache, cache_seqlens, page_table, softmax_scale, window_size)
    assert max_seqlen_q == int(cu_seqlens_q.diff().max())
    return _packed(q, cache, cu_seqlens_q, cache_seqlens, page_table, softmax_scale, window_size)


def _padded(
    q: Tensor,
    cache: tuple[Tensor, Tensor],
    lens: Tensor,
    tables: Tensor,
    scale: float,
    window: tuple[int, int],
) -> Tensor:
    assert q.dim() == 4
    starts = torch.arange(len(q) + 1) * q.shape[1]
    return _packed(q.flatten(0, 1), cache, starts, lens, tables, scale, window).view(q.shape)


def _packed(
    q: Tensor,
    cache: tuple[Tensor, Tensor],
    starts: Tensor,
    lens: Tensor,
    tables: Tensor,
    scale: float,
    window: tuple[int, int],
) -> Tensor:
    assert q.dim() == 3
    assert len(tables) == len(lens) == len(starts) - 1
    assert window == NO_WINDOW or (window[0] >= 0 and window[1] == 0)
    seen = None if window == NO_WINDOW else window[0] + 1
    out = torch.full(q.shape, torch.nan, dtype=q.dtype)
    for row, length in enumerate(lens.tolist()):
        pages = tables[row, : -(-length // cache[0].shape[1])].long()
        k, v = (part[pages].flatten(0, 1)[:length] for part in cache)
        tokens = slice(int(starts[row]), int(starts[row + 1]))
        out[tokens] = attention(q[tokens], k, v, True, seen, scale)
    return out
