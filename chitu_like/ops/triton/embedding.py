"""Embedding and the first norm: one program a token, as in norm.py."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from chitu_like.ops.embedding import embed_rms_norm_op
from chitu_like.ops.triton.launch import dependent_launch, serves, wait_for_previous
from chitu_like.ops.triton.norm import row_constants, scale_to_rms


@triton.jit
def _embed_rms_norm_kernel(
    ids, table, weight, embedded, normed, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One token."""
    token = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    mask = lane < WIDTH
    scale = tl.load(weight + lane, mask=mask, other=0.0).to(tl.float32)
    wait_for_previous(PDL)
    row = tl.load(ids + token).to(tl.int64)
    values = tl.load(table + row * WIDTH + lane, mask=mask, other=0.0)
    tl.store(embedded + token * WIDTH + lane, values, mask=mask)
    out = scale_to_rms(values.to(tl.float32), scale, eps, WIDTH)
    tl.store(normed + token * WIDTH + lane, out.to(normed.dtype.element_ty), mask=mask)


@embed_rms_norm_op.register("triton", supports=serves)
def embed_rms_norm(ids: Tensor, table: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See ops/embedding.py."""
    shape = (len(ids), table.shape[1])
    embedded, normed = (
        torch.empty(shape, dtype=table.dtype, device=table.device) for _ in range(2)
    )
    _embed_rms_norm_kernel[(len(ids),)](
        ids, table, weight, embedded, normed, eps,
        **row_constants(table), **dependent_launch(table.device),
    )  # fmt: skip
    return embedded, normed
