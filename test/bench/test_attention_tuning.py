from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from chitu_like.attention.base import AttentionBackend
from chitu_like.bench.attention_candidates import (
    decode_candidates,
    prefill_candidates,
    split_candidates,
)
from chitu_like.bench.attention_case import context_lens
from chitu_like.bench.attention_tuning import ranked, run, search
from chitu_like.bench.op_case import Setting
from chitu_like.bench.ops import Sweep, settings
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


def decode_points() -> list[Setting]:
    sweep = Sweep(models=("tiny-chat",), batches=(1, 64), contexts=(100,), prompts=())
    few, many = settings("tiny-chat", sweep, torch.device("cpu"), torch.float32, 16)
    return [few, many, replace(many, shortest=10)]


def test_candidates_that_cut_a_point_alike_are_measured_there_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: device)
    points, measured = decode_points(), []

    def time(at: Setting, _: AttentionBackend) -> float:
        measured.append(at)
        return float(len(measured))

    base = tiling_for(points[0].spec.head_dim, points[0].dtype)
    found = search(split_candidates(decode_candidates(base)[:1]), points, time)
    assert len(found) == 4 * 2
    # 132 to 1056 programs of one request are 32 splits as a rule, the most there are.
    assert 2 <= measured.count(points[0]) < len(found)
    assert len({one.microseconds for one in found}) > 4


def test_uneven_requests_have_the_same_lengths_every_time_and_no_other_than_asked_for() -> None:
    few, many, uneven = decode_points()
    assert context_lens(few) == [100]
    assert context_lens(many) == [100] * 64
    lens = context_lens(uneven)
    assert lens == context_lens(uneven)
    assert min(lens) >= 10
    assert max(lens) <= 100
    assert len(set(lens)) > 20


def test_without_a_gpu_there_is_nothing_to_tune(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert run_reporting("tune", lambda: run("tune", [])) == 2
    assert "CUDA" in capsys.readouterr().err
