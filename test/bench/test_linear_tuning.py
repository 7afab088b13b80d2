"""The tuner of linear layers: which shapes, which rows, and what it leaves out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from chitu_like.bench.device_timing import Call
from chitu_like.bench.linear_shapes import LinearShape, linear_shapes, merge_shapes
from chitu_like.bench.linear_tuning import Tuner, run
from chitu_like.config.load import load_config
from chitu_like.core.errors import ConfigError, UnsupportedError
from chitu_like.core.model_spec import ModelSpec
from chitu_like.layers.fused_decode import LINEAR_ADD, NORM_GATE_UP, NORM_LINEAR
from chitu_like.model_files import read_model_files
from chitu_like.ops.linear import FewTokens
from chitu_like.ops.linear_candidates import candidates
from chitu_like.ops.linear_fused import Operand, fused_linear
from chitu_like.ops.linear_tiles import Epilogue, LinearWork, SkinnyTile

CPU = torch.device("cpu")
PLAIN = LinearWork()
SHAPE = LinearShape(out_features=64, in_features=2048, works=(PLAIN, NORM_GATE_UP, LINEAR_ADD))


def spec_of(model: str) -> ModelSpec:
    return read_model_files(load_config([f"models={model}", "models.load_format=dummy"])).spec


def sizes(model: str, tp_size: int) -> list[tuple[int, int]]:
    shapes = linear_shapes(spec_of(model), tp_size)
    return [(shape.out_features, shape.in_features) for shape in shapes]


def test_shapes_are_those_of_a_rank() -> None:
    whole = [(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128256, 4096)]
    assert sizes("llama-3-8b", 1) == whole
    half = [(3072, 4096), (4096, 2048), (14336, 4096), (4096, 7168), (64128, 4096)]
    assert sizes("llama-3-8b", 2) == half
    # 16 ranks share 8 key-value heads: each holds one.
    assert sizes("llama-3-8b", 16)[0] == (2 * 128 + 2 * 128, 4096)
    small = [(4096, 1024), (1024, 2048), (6144, 1024), (1024, 3072), (151936, 1024)]
    assert sizes("qwen3-0.6b", 1) == small


def test_only_a_whole_layer_gated_by_silu_is_fused() -> None:
    def works(model: str, tp_size: int) -> list[tuple[LinearWork, ...]]:
        return [shape.works[1:] for shape in linear_shapes(spec_of(model), tp_size)]

    fused = [(NORM_LINEAR,), (LINEAR_ADD,), (NORM_GATE_UP,), (LINEAR_ADD,), ()]
    assert works("llama-3-8b", 1) == fused
    assert works("llama-3-8b", 2) == works("opt-125m", 1) == [()] * 5


def test_ranks_that_cannot_share_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"--tp-sizes 3 does not divide 32 heads"):
        linear_shapes(spec_of("llama-3-8b"), 3)


def test_a_weight_of_two_models_is_measured_once() -> None:
    one = LinearShape(out_features=8, in_features=4, works=(PLAIN, NORM_LINEAR))
    other = LinearShape(out_features=8, in_features=4, works=(PLAIN, LINEAR_ADD))
    (merged,) = merge_shapes([one, other])
    assert merged.works == (PLAIN, NORM_LINEAR, LINEAR_ADD)


class Bench:
    """Kernels and a clock that knows how long each tile takes.

    Args:
        wrong: tiles whose kernels are off.
    """

    def __init__(self, wrong: Sequence[SkinnyTile] = ()) -> None:
        self.lines: list[str] = []
        self.tiles: list[tuple[SkinnyTile, Epilogue]] = []
        self._wrong = wrong
        self._last: SkinnyTile | None = None

    def make_kernel(
        self,
        weight: Tensor,
        bias: Tensor | None,
        tile: SkinnyTile,
        *,
        eps: float = 0.0,
        epilogue: Epilogue = Epilogue.NONE,
        norm_weight: Tensor | None = None,
    ) -> FewTokens:
        assert (norm_weight is not None) == (epilogue is Epilogue.ADD)
        self.tiles.append((tile, epilogue))

        def call(x: Operand, residual: Tensor | None) -> Operand:
            self._last = tile
            assert (residual is not None) == (epilogue is Epilogue.ADD)
            assert (x.squares is not None) == (epilogue is Epilogue.SILU_AND_MUL)
            y = fused_linear(
                x,
                weight,
                bias,
                eps=eps,
                epilogue=epilogue,
                residual=residual,
                norm_weight=norm_weight,
            )
            return Operand(y.values * 1.1, y.squares) if tile in self._wrong else y

        return call

    def seconds(self, calls: Sequence[Call], _device: torch.device) -> float:
        """7 us for ordinary work; tiles differ, and an early start with the longest prefetch wins."""
        self._last = None
        for call in calls:
            call()
        if self._last is None:
            return 7e-6
        tile: SkinnyTile = self._last
        return (10 + tile.rows - (6 if tile.starts_early else 0) - tile.prefetch / 1e4) * 1e-6

    def tuner(self) -> Tuner:
        return Tuner(
            CPU,
            torch.float32,
            132,
            self.lines.append,
            make_kernel=self.make_kernel,
            timer=self.seconds,
        )


def test_a_row_holds_the_fastest_tile_and_what_it_competes_with() -> None:
    bench = Bench()
    rows = list(bench.tuner().tune([SHAPE], [1, 2]))
    assert [(row.num_tokens, row.work) for row in rows] == [
        (num_tokens, work) for num_tokens in (1, 2) for work in SHAPE.works
    ]
    for row in rows:
        assert (row.out_features, row.in_features, row.dtype) == (64, 2048, "float32")
        assert row.tile.rows == 4
        assert row.tile.starts_early
        assert row.tile.prefetch > 0
        assert row.tile_us == pytest.approx(8 - row.tile.prefetch / 1e4, abs=1e-3)
        assert row.other_us == 7.0
    assert len(bench.lines) == len(rows)
    assert "linear" in bench.lines[0]


def test_fused_work_tries_the_fastest_plain_tiles_alone() -> None:
    bench = Bench()
    list(bench.tuner().tune([SHAPE], [1]))
    plain = {tile for tile, epilogue in bench.tiles if epilogue is Epilogue.NONE}
    fused = [tile for tile, epilogue in bench.tiles if epilogue is Epilogue.ADD]
    assert {t for t in plain if not t.starts_early} == set(
        candidates(1, 64, 2048, num_multiprocessors=132)
    )
    assert len(fused) == 3 == len(set(fused))
    assert set(fused) <= plain
    assert all(tile.starts_early for tile in fused)


def test_norms_that_are_begun_wrongly_are_found() -> None:
    class Unsquared(Bench):
        def make_kernel(self, weight: Tensor, bias: Tensor | None, tile: SkinnyTile, **options):
            kernel = super().make_kernel(weight, bias, tile, **options)

            def call(x: Operand, residual: Tensor | None) -> Operand:
                found = kernel(x, residual)
                return found._replace(squares=None if residual is None else found.squares * 1.1)

            return call

    rows = list(Unsquared().tuner().tune([SHAPE], [2]))
    assert [row.work for row in rows] == [PLAIN, NORM_GATE_UP]


def test_a_wrong_tile_is_named_and_left_out() -> None:
    tiles = [tile for tile in candidates(1, 64, 2048, num_multiprocessors=132) if tile.rows == 4]
    bench = Bench(wrong=tiles)
    rows = list(bench.tuner().tune([SHAPE], [1]))
    assert all(row.tile.rows == 8 for row in rows)
    assert any(line.startswith("WRONG, left out: linear (64, 2048)") for line in bench.lines)


def test_where_every_tile_is_wrong_there_is_no_row() -> None:
    bench = Bench(wrong=candidates(1, 64, 2048, num_multiprocessors=132))
    assert list(bench.tuner().tune([SHAPE], [1])) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(UnsupportedError, match=r"^this measures kernels of CUDA"):
        run("tune_linear.py", [])


@pytest.mark.gpu
def test_a_table_is_written_and_grows(tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    for tokens in ("1", "64"):
        arguments = ["--models", "llama-3.2-1b", "--tokens", tokens, "--out", str(file)]
        assert run("tune_linear.py", arguments) == 0
    text = file.read_text(encoding="utf-8")
    assert '"num_tokens": 1,' in text
    assert '"num_tokens": 64,' in text
