"""Measures which linear layers the skinny kernel computes faster than the library, and how cut.

Every call is timed in a CUDA graph of calls on distinct weights, larger together than the last-level
cache: as in a decode step, none of them is read from there. All candidates are tried for the plain
product, then the fastest with programmatic dependent launch; fused work tries the fastest of all
those, since what stands around a product hardly changes how it is best cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from operator import itemgetter
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from chitu_like.bench.device_timing import Call, num_sets, seconds_per_call
from chitu_like.bench.linear_shapes import LinearShape, linear_shapes, merge_shapes
from chitu_like.bench.provenance import provenance
from chitu_like.bench.result_files import write_text
from chitu_like.cli.command_line import Parser, positive_ints
from chitu_like.config.load import load_config
from chitu_like.core.ending import DONE
from chitu_like.core.errors import ConfigError, UnsupportedError
from chitu_like.core.model_spec import ModelSpec
from chitu_like.layers.fused_decode import MakeKernel
from chitu_like.model_files import read_model_files
from chitu_like.ops.activation import act_and_mul_op
from chitu_like.ops.linear import (
    LinearKernel,
    PlainLinear,
    skinny_kernel,
    tabled_linear,
)
from chitu_like.ops.linear_candidates import candidates, early_variants
from chitu_like.ops.linear_fused import Operand, begin_norm, fused_linear
from chitu_like.ops.linear_table import LinearTable, TableRow, table_file
from chitu_like.ops.linear_tiles import (
    BUCKETS,
    MAX_PLAIN_TOKENS,
    MAX_TOKENS,
    Epilogue,
    LinearWork,
    SkinnyTile,
)
from chitu_like.ops.norm import add_rms_norm_op
from chitu_like.worker.device import device_facts

EPS = 1e-5
NUM_FINALISTS = 3  # tiles that fused work tries
NUM_EARLY = 2  # tiles that are tried with programmatic dependent launch
Timer = Callable[[Sequence[Call], torch.device], float]


@dataclass(frozen=True, kw_only=True)
class Operands:
    """Tensors of one shape and number of tokens, and distinct weights to take turns with.

    Attributes:
        x: [num_tokens, in_features].
        residual: [num_tokens, out_features].
        gain, next_gain: of norms in front and behind, [in_features] and [out_features].
        weights: each [out_features, in_features].
    """

    x: Tensor
    residual: Tensor
    gain: Tensor
    next_gain: Tensor
    weights: Sequence[Tensor]

    @classmethod
    def random(cls, shape: LinearShape, dtype: torch.dtype, device: torch.device) -> Operands:
        """Activations of size one, for the most tokens, and weights that keep it so."""
        rows, columns = shape.out_features, shape.in_features
        randn = partial(torch.randn, dtype=dtype, device=device)
        sets = num_sets(rows * columns * dtype.itemsize, device)
        return cls(
            x=randn(MAX_TOKENS, columns),
            residual=randn(MAX_TOKENS, rows),
            gain=randn(columns),
            next_gain=randn(rows),
            weights=[randn(rows, columns).mul_(columns**-0.5) for _ in range(sets)],
        )

    def head(self, num_tokens: int) -> Operands:
        """The leading tokens."""
        return replace(self, x=self.x[:num_tokens], residual=self.residual[:num_tokens])

    def operand(self, work: LinearWork) -> Operand:
        """What the product is of, with as many parts of squares as tiles may have written x."""
        if not work.has_norm:
            return Operand(self.x)
        num_tokens, columns = self.x.shape
        values, squares = begin_norm(self.x, self.gain)
        num_parts = max(1, columns // (8 if num_tokens <= MAX_PLAIN_TOKENS else 64))
        return Operand(values, (squares / num_parts).repeat(num_parts, 1))


class Tuner:
    """Measures shapes on a device.

    Args:
        device: that computes.
        dtype: of all tensors.
        num_multiprocessors: of the device.
        log: gets a line a measurement.
        make_kernel: binds a weight to a tile.
        timer: seconds of a call, of several that take turns.
    """

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        num_multiprocessors: int,
        log: Callable[[str], None],
        *,
        make_kernel: MakeKernel = skinny_kernel,
        timer: Timer = seconds_per_call,
    ) -> None:
        self._device, self._dtype = device, dtype
        self._num_multiprocessors = num_multiprocessors
        self._log, self._make_kernel, self._timer = log, make_kernel, timer

    def tune(self, shapes: Sequence[LinearShape], buckets: Sequence[int]) -> Iterator[TableRow]:
        """A row for each shape, number of tokens and work.

        Args:
            shapes: what to measure.
            buckets: numbers of tokens, of linear_tiles.BUCKETS.
        """
        for shape in shapes:
            operands = Operands.random(shape, self._dtype, self._device)
            for num_tokens in buckets:
                yield from self._rows(shape, operands.head(num_tokens))

    def _rows(self, shape: LinearShape, operands: Operands) -> Iterator[TableRow]:
        num_tokens, rows, columns = len(operands.x), shape.out_features, shape.in_features
        tiles = candidates(num_tokens, rows, columns, num_multiprocessors=self._num_multiprocessors)
        table = LinearTable()
        for work in shape.works:
            found = self._rank(operands, work, tiles)
            if work == LinearWork():
                fastest = [tile for tile, _ in found[:NUM_EARLY]]
                early = [each for tile in fastest for each in early_variants(tile, columns)]
                found = sorted(found + self._rank(operands, work, early), key=itemgetter(1))
                tiles = [tile for tile, _ in found[:NUM_FINALISTS]]
            if not found:  # all of them wrong, and said so
                continue
            row = TableRow(
                work=work,
                out_features=rows,
                in_features=columns,
                dtype=str(self._dtype).removeprefix("torch."),
                num_tokens=num_tokens,
                tile=found[0][0],
                tile_us=found[0][1],
                other_us=self._us(self._ordinary_calls(operands, work, table)),
            )
            self._log(_line(row))
            table = table.merged([row])
            yield row

    def _rank(
        self, operands: Operands, work: LinearWork, tiles: Sequence[SkinnyTile]
    ) -> list[tuple[SkinnyTile, float]]:
        """Tiles whose results are right, with their microseconds, the fastest first."""
        timed = []
        x, is_add = operands.operand(work), work.epilogue is Epilogue.ADD
        expected = _expected(operands, work)
        residual = operands.residual.clone() if is_add else None
        for tile in tiles:
            kernels = [
                self._make_kernel(
                    weight,
                    None,
                    tile,
                    eps=EPS,
                    epilogue=work.epilogue,
                    norm_weight=operands.next_gain if is_add else None,
                )
                for weight in operands.weights
            ]
            found = kernels[0](x, operands.residual.clone() if is_add else None)
            if _is_close(found, expected):
                timed.append((tile, self._us([partial(k, x, residual) for k in kernels])))
            else:
                shape = tuple(operands.weights[0].shape)
                self._log(f"WRONG, left out: {work.name} {shape} {len(operands.x)} tokens {tile}")
        return sorted(timed, key=itemgetter(1))

    def _ordinary_calls(
        self, operands: Operands, work: LinearWork, table: LinearTable
    ) -> list[Call]:
        """The same work without the kernel; see TableRow.other_us."""
        if work == LinearWork():
            return [partial(PlainLinear(w, None), operands.x) for w in operands.weights]
        add_norm = add_rms_norm_op.resolve(self._device, self._dtype)
        act_and_mul = act_and_mul_op.resolve(self._device, self._dtype)
        stream = operands.x.clone()

        def ordinary(linear: LinearKernel) -> None:
            x = operands.x
            if work.has_norm:
                x = add_norm(x, stream, operands.gain, EPS)
            y = linear(x)
            if work.epilogue is Epilogue.SILU_AND_MUL:
                act_and_mul(y, "silu")

        return [partial(ordinary, tabled_linear(w, None, table)) for w in operands.weights]

    def _us(self, calls: Sequence[Call]) -> float:
        return round(self._timer(calls, self._device) * 1e6, 3)


def run(prog: str, arguments: Sequence[str]) -> int:
    """Measure, print a line a shape, write the table after each."""
    options = _parser(prog).parse_args(arguments)
    if not torch.cuda.is_available():
        raise UnsupportedError("this measures kernels of CUDA devices, and torch sees none here")
    if wrong := set(options.tokens) - set(BUCKETS):
        raise ConfigError(f"--tokens {min(wrong)} is none of {', '.join(map(str, BUCKETS))}")
    facts, device = device_facts("cuda"), torch.device("cuda", 0)
    console = Console(soft_wrap=True, highlight=False)
    shapes = [
        shape
        for model in options.models
        for size in options.tp_sizes
        for shape in linear_shapes(_spec_of(model), size)
    ]
    tuner = Tuner(
        device,
        torch.bfloat16,
        torch.cuda.get_device_properties(device).multi_processor_count,
        console.print,
    )
    file = options.out or table_file(torch.cuda.get_device_name(device))
    table = LinearTable()
    if file.is_file():
        table = LinearTable.from_json(file.read_text(encoding="utf-8"), str(file))
    about = asdict(provenance(prog, arguments, facts))
    file.parent.mkdir(parents=True, exist_ok=True)
    for row in tuner.tune(merge_shapes(shapes), options.tokens):
        table = table.merged([row])
        write_text(file, table.to_json(about))
    console.print(f"written: {file}")
    return DONE


def _expected(operands: Operands, work: LinearWork) -> Operand:
    """The reference's result with the first weight, in float32."""
    x, is_add = operands.operand(work), work.epilogue is Epilogue.ADD
    return fused_linear(
        Operand(x.values.float(), x.squares),
        operands.weights[0].float(),
        None,
        eps=EPS,
        epilogue=work.epilogue,
        residual=operands.residual.to(torch.float32, copy=True),
        norm_weight=operands.next_gain.float() if is_add else None,
    )


def _is_close(found: Operand, expected: Operand) -> bool:
    """What was found is right, within the roundings of its dtype; results are of size one."""
    tolerance = 8 * torch.finfo(found.values.dtype).eps
    is_close = partial(torch.allclose, rtol=tolerance, atol=tolerance)
    if not is_close(found.values.float(), expected.values):
        return False
    if found.squares is None or expected.squares is None:
        return found.squares is expected.squares
    return is_close(found.squares.sum(0), expected.squares.sum(0))


def _spec_of(model: str) -> ModelSpec:
    return read_model_files(load_config([f"models={model}", "models.load_format=dummy"])).spec


def _line(row: TableRow) -> str:
    num_bytes = row.out_features * row.in_features * getattr(torch, row.dtype).itemsize
    tile = row.tile
    how = f"{'dot' if tile.uses_dot else 'fma'} {tile.rows}x{tile.columns} splits {tile.splits}"
    if tile.starts_early:
        how += f" early, prefetch {tile.prefetch}"
    return (
        f"{row.work.name:26} {row.out_features:6}x{row.in_features:<6} {row.num_tokens:2} tokens: "
        f"{row.tile_us:7.2f} us ({num_bytes / row.tile_us / 1e6:.2f} TB/s), without "
        f"{row.other_us:7.2f} us ({num_bytes / row.other_us / 1e6:.2f} TB/s); {how}, "
        f"{tile.num_warps} warps, {tile.num_stages} stages"
    )


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog,
        f"Measure linear layers of up to {MAX_TOKENS} tokens: the skinny kernel in every promising cut beside "
        "the library, in bfloat16. Writes the table that services on this device read.",
        [
            f"{prog} --models llama-3-8b,qwen3-0.6b",
            f"{prog} --models llama-3-70b --tp-sizes 4,8 --tokens 1,8 --out table.json",
        ],
    )
    words = lambda text: [word.strip() for word in text.split(",")]  # noqa: E731
    parser.add_argument(
        "--models", type=words, default=["llama-3-8b", "qwen3-0.6b"], metavar="NAME,...",
        help="of config/models",
    )  # fmt: skip
    parser.add_argument("--tp-sizes", type=positive_ints, default=[1], metavar="N,...")
    parser.add_argument(
        "--tokens", type=positive_ints, default=list(BUCKETS), metavar="N,...",
        help=f"of {', '.join(map(str, BUCKETS))}",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="FILE",
        help="table to write, rows that it has and are not measured stay (default: the package's)",
    )  # fmt: skip
    return parser
