"""y = x W^T for 1 to 64 tokens, with what stands before and behind it in a decoder layer.

So few tokens make the product a matter of reading W once at the memory's pace. A program takes a tile
of rows of W and, where rows alone make too few programs to fill the device, a split of its columns;
it walks along them, COLUMNS at a time: ops/triton/skinny_products.py says how.

The programs of a split leave their sums in `partials`. The one that comes last adds them up in the
order of the splits, so that equal inputs give equal bits, and clears the counter for the next call.

Of a norm, x / rms(x) * g, nothing is left for the loop: what x was written by has multiplied it with g
and added up squares, a sum for each of its tiles, and W (x g) is divided by rms(x) at the end. In
float16 x g must stay below 65504.

With programmatic dependent launch the kernel starts while the one before still runs. W depends on
nothing: its first PREFETCH columns are asked into L2 before the wait for x.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from chitu_like.ops.linear_fused import Operand
from chitu_like.ops.linear_tiles import Epilogue, SkinnyTile, padded_tokens
from chitu_like.ops.triton.paged_attention import is_interpreted
from chitu_like.ops.triton.skinny_products import multiply, multiply_with_dot, prefetch

SILU_AND_MUL = tl.constexpr(1)
ADD = tl.constexpr(2)
_EPILOGUES = {
    Epilogue.NONE: 0,
    Epilogue.SILU_AND_MUL: SILU_AND_MUL.value,
    Epilogue.ADD: ADD.value,
}
_HELD_PARTS = 16  # registers of a thread
_DOT_DTYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


@triton.jit
def _finish(
    sums, squares, bias, norm_weight, out, begun, begun_squares,
    tile, num_tokens, num_rows, num_columns, eps,
    HAS_BIAS: tl.constexpr, PARTS: tl.constexpr, EPILOGUE: tl.constexpr,
    TOKENS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Write a tile's [ROWS, TOKENS] sums as outputs."""
    token = tl.arange(0, TOKENS)
    if PARTS > 0:
        sums *= tl.rsqrt(tl.sum(squares, 0) / num_columns + eps)[None, :]
    if HAS_BIAS:
        row = _rows_of(tile, num_rows, EPILOGUE, ROWS)
        sums += tl.load(bias + row, mask=row < num_rows, other=0.0).to(tl.float32)[:, None]
    if EPILOGUE == SILU_AND_MUL:
        pairs = tl.permute(tl.reshape(sums, [ROWS // 2, 2, TOKENS]), [0, 2, 1])
        gate, up = tl.split(pairs)
        value = gate * tl.sigmoid(gate) * up
        feature = tile * (ROWS // 2) + tl.arange(0, ROWS // 2)
        num_features = num_rows // 2
    else:
        value = sums
        feature = tile * ROWS + tl.arange(0, ROWS)
        num_features = num_rows
    at = token[None, :] * num_features + feature[:, None]
    mask = (feature < num_features)[:, None] & (token < num_tokens)[None, :]
    if EPILOGUE == ADD:
        value += tl.load(out + at, mask=mask, other=0.0).to(tl.float32)
    value = value.to(out.dtype.element_ty)
    tl.store(out + at, value, mask=mask)
    if norm_weight is not None:
        gain = tl.load(norm_weight + feature, mask=feature < num_features, other=0.0)
        wide = tl.where(mask, value.to(tl.float32), 0.0)
        weighted = wide * gain.to(tl.float32)[:, None]
        tl.store(begun + at, weighted.to(begun.dtype.element_ty), mask=mask)
        squares_at = begun_squares + tile * num_tokens + token
        tl.store(squares_at, tl.sum(wide * wide, 0), mask=token < num_tokens)


@triton.jit
def _rows_of(tile, num_rows, EPILOGUE: tl.constexpr, ROWS: tl.constexpr):
    """Rows of W that are a tile's, from num_rows on where there are none: a gate beside its up."""
    lane = tile * ROWS + tl.arange(0, ROWS)
    if EPILOGUE == SILU_AND_MUL:
        row = lane // 2 + (lane % 2) * (num_rows // 2)
        row = tl.where(lane < num_rows, row, num_rows)
    else:
        row = lane
    return row


@triton.jit(do_not_specialize=["num_tokens", "num_parts"])
def _kernel(
    x, squares, weight, bias, norm_weight, out, begun, begun_squares, partials, counters,
    num_tokens, num_parts, num_rows, num_columns, x_stride, eps,
    HAS_BIAS: tl.constexpr, PARTS: tl.constexpr, SUMS_PARTS_FIRST: tl.constexpr,
    EPILOGUE: tl.constexpr, IS_EVEN: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, SPLITS: tl.constexpr, NUM_STAGES: tl.constexpr, DOT: tl.constexpr,
    STARTS_EARLY: tl.constexpr, PREFETCH: tl.constexpr,
):  # fmt: skip
    """One split of one tile of rows."""
    tile, split = tl.program_id(0), tl.program_id(1)
    row = _rows_of(tile, num_rows, EPILOGUE, ROWS)
    row_mask = row < num_rows
    starts = weight + row.to(tl.int64) * num_columns
    length = tl.cdiv(tl.cdiv(num_columns, COLUMNS), SPLITS) * COLUMNS
    first = split * length
    end = tl.minimum(first + length, num_columns)
    if STARTS_EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        if PREFETCH > 0:
            prefetch(starts, row_mask, first, end, PREFETCH)
        tl.extra.cuda.gdc_wait()
    token = tl.arange(0, TOKENS)
    of_x = None
    if PARTS > 0:  # asked for before the loop, wanted behind it, but for more than can be held
        part = tl.arange(0, PARTS)
        of_x = tl.load(
            squares + part[:, None] * num_tokens + token[None, :],
            mask=(part < num_parts)[:, None] & (token < num_tokens)[None, :],
            other=0.0,
        )
        if SUMS_PARTS_FIRST:
            of_x = tl.sum(of_x, 0)[None, :]
    if DOT is None:
        sums = multiply(
            x, starts, row_mask, first, end, num_tokens, x_stride,
            IS_EVEN, TOKENS, ROWS, COLUMNS, NUM_STAGES,
        )  # fmt: skip
    else:
        sums = multiply_with_dot(
            x, starts, row_mask, first, end, num_tokens, x_stride,
            IS_EVEN, TOKENS, ROWS, COLUMNS, NUM_STAGES, DOT,
        )  # fmt: skip
    if SPLITS == 1:
        _finish(
            sums, of_x, bias, norm_weight, out, begun, begun_squares,
            tile, num_tokens, num_rows, num_columns, eps,
            HAS_BIAS, PARTS, EPILOGUE, TOKENS, ROWS,
        )  # fmt: skip
    else:
        at = token[None, :] * ROWS + tl.arange(0, ROWS)[:, None]
        mask = (token < num_tokens)[None, :] & row_mask[:, None]
        theirs = partials + tile.to(tl.int64) * (SPLITS * TOKENS * ROWS)
        tl.store(theirs + split * (TOKENS * ROWS) + at, sums, mask=mask)
        # Every thread's stores come before the count, and the last one's loads behind it.
        tl.debug_barrier()
        if tl.atomic_add(counters + tile, 1, sem="acq_rel", scope="gpu") == SPLITS - 1:
            tl.store(counters + tile, 0)
            sums = tl.zeros([ROWS, TOKENS], tl.float32)
            for each in tl.static_range(SPLITS):
                found = theirs + each * (TOKENS * ROWS) + at
                sums += tl.load(found, mask=mask, other=0.0, cache_modifier=".cg")
            _finish(
                sums, of_x, bias, norm_weight, out, begun, begun_squares,
                tile, num_tokens, num_rows, num_columns, eps,
                HAS_BIAS, PARTS, EPILOGUE, TOKENS, ROWS,
            )  # fmt: skip


class SkinnyLinear:
    """The kernel with one weight, cut one way.

    Args:
        weight: [out_features, in_features], contiguous, final values.
        bias: [out_features] or None.
        tile: how it is cut.
        eps: of a norm that x begins.
        epilogue: behind the product.
        norm_weight: [out_features], of the norm that is begun behind ADD, or None.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        tile: SkinnyTile,
        *,
        eps: float = 0.0,
        epilogue: Epilogue = Epilogue.NONE,
        norm_weight: Tensor | None = None,
    ) -> None:
        assert weight.is_contiguous(), f"a weight is read row by row, not by {weight.stride()}"
        assert norm_weight is None or epilogue is Epilogue.ADD, epilogue
        self._weight, self._bias, self._norm_weight = weight, bias, norm_weight
        self._tile, self._eps, self._epilogue = tile, eps, epilogue
        self._num_tiles = -(-weight.shape[0] // tile.rows)
        # A call leaves them 0 as it found them. Calls on one weight follow one another.
        self._counters = torch.zeros(self._num_tiles, dtype=torch.int32, device=weight.device)
        self._dot = None
        if tile.uses_dot:  # the interpreter multiplies bfloat16 wrongly
            self._dot = tl.float32 if is_interpreted() else _DOT_DTYPES[weight.dtype]

    def __call__(self, operand: Operand, residual: Tensor | None = None) -> Operand:
        """See fused_linear; there are as many tokens as the tile serves."""
        (x, squares), tile = operand, self._tile
        num_tokens = len(x)
        assert tile.serves(num_tokens), f"{num_tokens} tokens for {tile}"
        assert (residual is not None) == (self._epilogue is Epilogue.ADD), self._epilogue
        num_rows, num_columns = self._weight.shape
        x = x if x.stride(-1) == 1 else x.contiguous()
        tokens = padded_tokens(tile, num_tokens)
        num_parts = 0 if squares is None else len(squares)
        parts = triton.next_power_of_2(num_parts) if num_parts else 0
        out, begun, partials = self._make_room(x, residual, tokens)
        _kernel[(self._num_tiles, tile.splits)](
            x,
            squares,
            self._weight,
            self._bias,
            self._norm_weight,
            out,
            begun.values,
            begun.squares,
            partials,
            self._counters,
            num_tokens,
            num_parts,
            num_rows,
            num_columns,
            x.stride(0),
            self._eps,
            HAS_BIAS=self._bias is not None,
            PARTS=parts,
            SUMS_PARTS_FIRST=parts * tokens > _HELD_PARTS * 32 * tile.num_warps,
            EPILOGUE=_EPILOGUES[self._epilogue],
            IS_EVEN=num_columns % tile.columns == 0,
            TOKENS=tokens,
            ROWS=tile.rows,
            COLUMNS=tile.columns,
            SPLITS=tile.splits,
            NUM_STAGES=tile.num_stages,
            DOT=self._dot,
            STARTS_EARLY=tile.starts_early,
            PREFETCH=tile.prefetch,
            num_warps=tile.num_warps,
            **({"launch_pdl": True} if tile.starts_early else {}),
        )
        return begun

    def _make_room(
        self, x: Tensor, residual: Tensor | None, tokens: int
    ) -> tuple[Tensor, Operand, Tensor | None]:
        """Outputs, what is returned, and the splits' sums for `tokens` padded tokens."""
        num_tokens, num_features = len(x), self._weight.shape[0]
        if self._epilogue is Epilogue.SILU_AND_MUL:
            num_features //= 2
        out = x.new_empty(num_tokens, num_features) if residual is None else residual
        begun = Operand(out)
        if self._norm_weight is not None:
            shape = (self._num_tiles, num_tokens)
            squares = torch.empty(shape, dtype=torch.float32, device=x.device)
            begun = Operand(torch.empty_like(out), squares)
        partials = None
        if self._tile.splits > 1:
            size = self._num_tiles * self._tile.splits * tokens * self._tile.rows
            partials = torch.empty(size, dtype=torch.float32, device=x.device)
        return out, begun, partials
