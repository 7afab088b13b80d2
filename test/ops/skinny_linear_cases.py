"""The skinny linear kernel against its reference; test_kernels.py runs this in the interpreter.

By hand: `TRITON_INTERPRET=1 pytest test/ops/skinny_linear_cases.py --slow` on a CPU, and without the
variable on a CUDA device, where the same cases run compiled, and more at the sizes of real models.
"""

from dataclasses import replace

import pytest
import torch
from tolerance import OP, assert_op_close
from torch import Tensor

from chitu_like.ops.linear_candidates import candidates, early_variants
from chitu_like.ops.linear_fused import Operand, begin_norm, fused_linear
from chitu_like.ops.linear_tiles import ALL_WORK, Epilogue, LinearWork, SkinnyTile, token_bucket
from chitu_like.ops.triton.paged_attention import is_interpreted
from chitu_like.ops.triton.skinny_linear import SkinnyLinear

DEVICE = torch.device("cpu" if is_interpreted() else "cuda")
PLAIN = SkinnyTile(rows=8, columns=32, splits=1, num_warps=4, num_stages=1, uses_dot=False)
DOT = SkinnyTile(rows=16, columns=32, splits=1, num_warps=4, num_stages=2, uses_dot=True)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
EPS = 1e-5

by_work = pytest.mark.parametrize("work", ALL_WORK, ids=[work.name for work in ALL_WORK])


def make(*shape: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    return (torch.randn(shape, device=DEVICE) * scale).to(dtype)


class Case:
    """Operands of one call; the reference computes on copies, in float64."""

    def __init__(
        self,
        work: LinearWork,
        num_tokens: int,
        out_features: int,
        in_features: int,
        dtype: torch.dtype,
        has_bias: bool = False,
    ) -> None:
        self.work = work
        self.x = make(num_tokens, in_features, dtype=dtype)
        self.weight = make(out_features, in_features, dtype=dtype, scale=in_features**-0.5)
        self.bias = make(out_features, dtype=dtype) if has_bias else None
        self.residual = make(num_tokens, out_features, dtype=dtype)
        self.gain = make(in_features, dtype=dtype)
        # A norm behind is begun where there is something to begin it with.
        has_norm_behind = work.epilogue is Epilogue.ADD and has_bias
        self.next_gain = make(out_features, dtype=dtype) if has_norm_behind else None

    def operand(self) -> Operand:
        """X, or the norm of it that is begun, its squares in three uneven parts."""
        if not self.work.has_norm:
            return Operand(self.x)
        values, squares = begin_norm(self.x, self.gain)
        shares = torch.tensor([0.5, 0.2, 0.3], device=DEVICE)
        return Operand(values, shares[:, None] * squares)

    def expected(self) -> Operand:
        x = self.operand()
        wide = Operand(x.values.double(), None if x.squares is None else x.squares.double())
        return fused_linear(
            wide,
            self.weight.double(),
            None if self.bias is None else self.bias.double(),
            eps=EPS,
            epilogue=self.work.epilogue,
            residual=self.residual.double(),
            norm_weight=None if self.next_gain is None else self.next_gain.double(),
        )

    def kernel(self, tile: SkinnyTile) -> SkinnyLinear:
        return SkinnyLinear(
            self.weight,
            self.bias,
            tile,
            eps=EPS,
            epilogue=self.work.epilogue,
            norm_weight=self.next_gain,
        )

    def call(self, kernel: SkinnyLinear) -> Operand:
        residual = self.residual.clone() if self.work.epilogue is Epilogue.ADD else None
        found = kernel(self.operand(), residual)
        assert (found.squares is None) == (self.next_gain is None)
        if residual is not None and self.next_gain is None:
            assert found.values is residual
        if self.next_gain is not None:
            assert residual is not None
            self.check_begun(found, residual)
        return found

    def check_begun(self, found: Operand, residual: Tensor) -> None:
        """The norm that is begun is that of what `residual` holds now, and its parts are tiles."""
        assert found.squares is not None
        assert self.next_gain is not None
        values, squares = begin_norm(residual, self.next_gain)
        assert_op_close(found.values, values)
        torch.testing.assert_close(found.squares.sum(0), squares[0], rtol=1e-5, atol=1e-5)

    def check(self, tile: SkinnyTile) -> None:
        found, expected = self.call(self.kernel(tile)).values, self.expected().values
        if self.next_gain is not None:
            # The sum is rounded before it is multiplied.
            rtol, atol = (3 * tolerance for tolerance in OP[found.dtype])
            torch.testing.assert_close(found, expected.to(found.dtype), rtol=rtol, atol=atol)
        else:
            assert_op_close(found, expected)


@by_work
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("tile", [PLAIN, DOT], ids=["plain", "dot"])
def test_every_fusion_computes_what_the_reference_does(
    work: LinearWork, splits: int, tile: SkinnyTile
) -> None:
    Case(work, 3, 20, 70, torch.float32, has_bias=True).check(replace(tile, splits=splits))


@pytest.mark.slow
@by_work
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_tokens", [1, 4, 16, 33])
def test_every_shape_and_dtype(work: LinearWork, dtype: torch.dtype, num_tokens: int) -> None:
    for shape in ((38, 70), (2, 33), (70, 8)):  # compiled, they share their kernels
        case = Case(work, num_tokens, *shape, dtype, has_bias=num_tokens != 4)
        for tile in (PLAIN, DOT):
            for splits in (1, 2):
                if tile.serves(num_tokens):
                    case.check(replace(tile, splits=splits))


@pytest.mark.parametrize("num_tokens", [1, 2, 4, 5, 9, 15, 16, 17, 32, 40, 64])
def test_any_number_of_tokens_and_a_ragged_weight(num_tokens: int) -> None:
    case = Case(LinearWork(), num_tokens, 21, 45, DTYPES[num_tokens % 3], has_bias=True)
    case.check(DOT)
    if PLAIN.serves(num_tokens):
        case.check(PLAIN)


@pytest.mark.parametrize("tile", [PLAIN, DOT], ids=["plain", "dot"])
def test_more_splits_than_columns_to_share(tile: SkinnyTile) -> None:
    work = LinearWork(has_norm=True, epilogue=Epilogue.SILU_AND_MUL)
    Case(work, 2, 32, 40, torch.float32).check(replace(tile, splits=8))


@pytest.mark.parametrize("tile", [PLAIN, DOT], ids=["plain", "dot"])
def test_calls_in_a_row_give_the_same_bits(tile: SkinnyTile) -> None:
    case = Case(LinearWork(has_norm=True), 4, 24, 96, torch.float32)
    kernel = case.kernel(replace(tile, splits=3))
    first = case.call(kernel).values
    for _ in range(3):
        assert torch.equal(case.call(kernel).values, first)


@pytest.mark.parametrize("tile", [PLAIN, DOT], ids=["plain", "dot"])
def test_a_token_does_not_see_the_others(tile: SkinnyTile) -> None:
    case = Case(LinearWork(has_norm=True), 4, 24, 64, torch.float32)
    whole = case.call(case.kernel(tile)).values
    case.x[1:] = float("nan")
    assert torch.equal(case.call(case.kernel(tile)).values[0], whole[0])


def test_tokens_of_a_wider_tensor_are_taken() -> None:
    case = Case(LinearWork(), 3, 24, 64, torch.float32)
    expected = case.expected().values
    wide = torch.full((3, 80), float("nan"), device=DEVICE)
    wide[:, 8:72] = case.x
    case.x = wide[:, 8:72]
    assert_op_close(case.call(case.kernel(PLAIN)).values, expected)
    case.x = case.x.T.contiguous().T
    assert_op_close(case.call(case.kernel(DOT)).values, expected)


# (out_features, in_features): Llama-3-8B's qkv, o, gate_up and down, and Qwen3-0.6B's.
REAL_SHAPES = [
    (6144, 4096),
    (4096, 4096),
    (28672, 4096),
    (4096, 14336),
    (4096, 1024),
    (1024, 2048),
    (6144, 1024),
    (1024, 3072),
]


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("num_tokens", [1, 3, 16, 64])
@pytest.mark.parametrize("shape", REAL_SHAPES, ids=str)
def test_every_candidate_at_the_sizes_of_real_models(
    shape: tuple[int, int], num_tokens: int
) -> None:
    multiprocessors = torch.cuda.get_device_properties(DEVICE).multi_processor_count
    case = Case(LinearWork(), num_tokens, *shape, torch.bfloat16)
    bucket = token_bucket(num_tokens)
    tiles = candidates(bucket, *shape, num_multiprocessors=multiprocessors)
    tiles += early_variants(tiles[0], shape[1])
    for tile in tiles:
        case.check(tile)
    for work in ALL_WORK:
        Case(work, num_tokens, *shape, torch.bfloat16, has_bias=True).check(tiles[-1])


@pytest.mark.gpu
@pytest.mark.parametrize("num_tokens", [1, 16, 64])
def test_calls_that_start_early_and_follow_one_another_in_a_graph(num_tokens: int) -> None:
    """A chain, each call on what the one before gave: an early read would see the last replay's."""
    layers = [Case(LinearWork(), num_tokens, 2048, 2048, torch.bfloat16) for _ in range(8)]
    tile = candidates(num_tokens, 2048, 2048, num_multiprocessors=132)[0]
    early = early_variants(replace(tile, splits=4), 2048)[-1]
    kernels = [layer.kernel(early) for layer in layers]
    x = layers[0].x.clone()

    def chain() -> Tensor:
        y = Operand(x)
        for kernel in kernels:
            y = kernel(y)
        return y.values

    chain()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = chain()
    for _ in range(3):
        x.copy_(torch.randn_like(x))
        graph.replay()
        expected = x
        for layer in layers:
            expected = torch.nn.functional.linear(expected, layer.weight)
        # Eight roundings to bfloat16, one behind the other.
        torch.testing.assert_close(found, expected, rtol=5e-2, atol=5e-2)
