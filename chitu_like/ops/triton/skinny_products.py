"""The loops of the skinny linear kernel: a tile of W, [ROWS, columns], times the tokens.

There are two ways to multiply:

- with tensor cores, the tile of W as the A operand, the tokens, padded to 16, 32 or 64, as the B
  operand. Both wait in shared memory, NUM_STAGES deep: those are the loads in flight;
- without: every thread multiplies the weights it loaded with each token and adds up its own products,
  until the end. The loads in flight are those of a tile and of the programs beside it.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def prefetch(starts, row_mask, first, end, PREFETCH: tl.constexpr):
    """Ask for PREFETCH columns of each row, to be found in L2; a line of memory is 128 bytes."""
    line: tl.constexpr = 1024 // starts.dtype.element_ty.primitive_bitwidth
    columns = first + tl.arange(0, PREFETCH // line) * line
    wanted = row_mask[:, None] & (columns < end)[None, :]
    tl.inline_asm_elementwise(
        "{ .reg .pred p; setp.ne.s32 p, $2, 0; @p prefetch.global.L2 [$1]; mov.u32 $0, 0; }",
        "=r,l,r",
        [(starts[:, None] + columns[None, :]).to(tl.int64), wanted.to(tl.int32)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def multiply_with_dot(
    x, starts, row_mask, first, end, num_tokens, x_stride,
    IS_EVEN: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    NUM_STAGES: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Sums over columns [first, end): products [ROWS, TOKENS]."""
    token = tl.arange(0, TOKENS)
    sums = tl.zeros([ROWS, TOKENS], tl.float32)
    for start in tl.range(first, end, COLUMNS, num_stages=NUM_STAGES):
        columns = start + tl.arange(0, COLUMNS)
        w_mask = row_mask[:, None]
        x_mask = (token < num_tokens)[None, :]
        if not IS_EVEN:
            w_mask = w_mask & (columns < end)[None, :]
            x_mask = x_mask & (columns < end)[:, None]
        w = tl.load(
            starts[:, None] + columns[None, :],
            mask=w_mask,
            other=0.0,
            eviction_policy="evict_first",
        )
        of_token = tl.load(x + token[None, :] * x_stride + columns[:, None], mask=x_mask, other=0.0)
        sums = tl.dot(w.to(DOT), of_token.to(DOT), sums, input_precision="ieee")
    return sums


@triton.jit
def multiply(
    x, starts, row_mask, first, end, num_tokens, x_stride,
    IS_EVEN: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):  # fmt: skip
    """As `multiply_with_dot`, without tensor cores."""
    products = (tl.zeros([ROWS, COLUMNS], tl.float32),) * TOKENS
    for start in tl.range(first, end, COLUMNS, num_stages=NUM_STAGES):
        columns = start + tl.arange(0, COLUMNS)
        w_mask = row_mask[:, None]
        if not IS_EVEN:
            w_mask = w_mask & (columns < end)[None, :]
        w = tl.load(
            starts[:, None] + columns[None, :],
            mask=w_mask,
            other=0.0,
            eviction_policy="evict_first",
        ).to(tl.float32)
        next_products = ()
        for token in tl.static_range(TOKENS):
            x_mask = columns < tl.where(token < num_tokens, end, 0)
            of_token = tl.load(x + token * x_stride + columns, mask=x_mask, other=0.0)
            product = products[token] + w * of_token.to(tl.float32)[None, :]
            next_products = next_products + (product,)  # noqa: RUF005  # Triton knows no star here
        products = next_products

    token_at = tl.arange(0, TOKENS)
    sums = tl.zeros([ROWS, TOKENS], tl.float32)
    for token in tl.static_range(TOKENS):
        sums = tl.where((token_at == token)[None, :], tl.sum(products[token], 1)[:, None], sums)
    return sums
