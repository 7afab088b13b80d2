from __future__ import annotations

import math

import pytest
import torch

from chitu_like.bench.attention_tuning import decode_candidates, prefill_candidates, ranked, run
from chitu_like.cli.command_line import run_reporting
from chitu_like.ops.attention_tiles import tiling_for

BASE = tiling_for(128, torch.bfloat16)


def test_no_point_decides_alone() -> None:
    candidates = decode_candidates(BASE)[:4]
    times = [(10.0, 40.0), (11.0, 20.0), (30.0, 20.0), (5.0, math.inf)]
    found = ranked(candidates, times)
    assert [one.candidate for one in found] == [candidates[index] for index in (1, 0, 2, 3)]
    assert found[0].score == pytest.approx(math.sqrt(11 / 5 * 1.0))
    assert found[-1].score == math.inf


def test_the_tables_own_tiles_are_measured_first_and_every_tile_once() -> None:
    decode, prefill = decode_candidates(BASE), prefill_candidates(BASE)
    assert decode[0].tiling == prefill[0].tiling == BASE
    for candidates in (decode, prefill):
        assert len({candidate.tiling for candidate in candidates}) == len(candidates)


def test_without_a_gpu_there_is_nothing_to_tune(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert run_reporting("tune", lambda: run("tune", [])) == 2
    assert "CUDA" in capsys.readouterr().err
