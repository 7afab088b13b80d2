from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from chitu_like.attention.base import ForwardBatch
from chitu_like.attention.ref import RefBackend, RefMetadata
from chitu_like.bench import device_timing
from chitu_like.bench.attention_case import attention_spec, attention_work, context_lens
from chitu_like.bench.op_case import Case, Setting, Work
from chitu_like.bench.op_cases import CASES
from chitu_like.bench.ops import DEFAULTS, Sweep, run, select_cases, settings
from chitu_like.bench.roof import Roof
from chitu_like.cli.command_line import run_reporting
from chitu_like.worker.padded_decodes import LONGEST_FIRST

SWEEP = Sweep(models=("tiny-chat",), batches=(3,), contexts=(40, 70), prompts=(17,))


def tiny_settings(device: str) -> list[Setting]:
    return list(settings("tiny-chat", SWEEP, torch.device(device), torch.bfloat16, 16))


def check_cases(device: str) -> None:
    for at in tiny_settings(device):
        for case in CASES:
            kinds = case.kinds(at)
            assert len(set(kinds)) == len(kinds)
            for kind in kinds:
                work = case.make(at, kind)
                work.fresh()()
                assert work.num_bytes > 0
                assert 0 <= work.streamed_bytes <= work.num_bytes


def test_every_case_runs_by_every_implementation_that_serves() -> None:
    check_cases("cpu")


@pytest.mark.gpu
def test_every_case_runs_by_every_implementation_that_serves_on_cuda() -> None:
    check_cases("cuda")


@pytest.mark.gpu
def test_a_call_in_a_graph_takes_as_long_as_between_events() -> None:
    device = torch.device("cuda")
    a = torch.randn(4096, 4096, device=device).bfloat16()
    in_graph, apart = (
        device_timing.seconds_per_call([lambda: a @ a], device, in_graph=how)
        for how in (True, False)
    )
    assert in_graph == pytest.approx(apart, rel=0.3)


def test_work_that_the_context_does_not_change_is_timed_at_one_context() -> None:
    at = tiny_settings("cpu")
    assert [(s.num_tokens, s.context, s.is_first_context) for s in at] == [
        (3, 40, True),
        (3, 70, False),
        (17, 17, True),
    ]


def test_attention_counts_the_pairs_of_a_causal_prompt_and_of_a_decode() -> None:
    attention = select_cases(["attention"])[0]
    decode, _, prompt = tiny_settings("cpu")
    width = 4 * decode.q_size
    assert attention.make(decode, "ref").num_flops == 3 * 40 * width
    assert attention.make(prompt, "ref").num_flops == 17 * 18 // 2 * width


class Planned(RefBackend):
    """Keeps the batch it planned."""

    def plan(self, batch: ForwardBatch) -> RefMetadata:
        self.batch = batch
        return super().plan(batch)


@pytest.mark.parametrize("num_reqs", [LONGEST_FIRST - 1, LONGEST_FIRST])
def test_many_decodes_are_told_longest_first_as_recorded_steps_tell_them(num_reqs: int) -> None:
    decode, _, prompt = tiny_settings("cpu")
    at = replace(decode, num_reqs=num_reqs, shortest=3)
    backend = Planned(attention_spec(at))
    attention_work(at, backend)
    if num_reqs < LONGEST_FIRST:
        assert backend.batch.decode_order is None
    else:
        order, lens = backend.batch.decode_order, context_lens(at)
        assert order is not None
        assert order.dtype == torch.int32
        assert order.tolist() == sorted(range(num_reqs), key=lambda request: -lens[request])
    attention_work(replace(prompt, num_reqs=num_reqs), backend)
    assert backend.batch.decode_order is None


def test_uneven_attention_counts_what_its_requests_have() -> None:
    uneven = select_cases(["attention_uneven"])[0]
    decode = tiny_settings("cpu")[0]
    width, lens = 4 * decode.q_size, context_lens(replace(decode, shortest=3))
    work = uneven.make(decode, "ref")
    assert 9 <= sum(lens) < 3 * 40
    assert work.num_flops == sum(lens) * width
    work.fresh()()


def test_a_matrix_is_read_from_memory_and_its_input_is_not() -> None:
    at = tiny_settings("cpu")[0]
    work = select_cases(["down_proj"])[0].make(at, "torch")
    hidden, inner = at.spec.hidden_size, at.spec.intermediate_size
    assert work.streamed_bytes == 2 * hidden * inner
    assert work.num_bytes == work.streamed_bytes + 2 * 3 * (hidden + inner)
    assert work.num_flops == 2 * 3 * hidden * inner


@pytest.mark.parametrize(
    ("streamed", "expected"), [(0, 1), (1 << 30, 1), (50 << 20, 4), (1 << 20, 64)]
)
def test_weights_take_turns_until_the_cache_cannot_keep_them(
    monkeypatch: pytest.MonkeyPatch, streamed: int, expected: int
) -> None:
    monkeypatch.setattr(device_timing, "cache_bytes", lambda device: 50 << 20)
    assert device_timing.num_sets(streamed, torch.device("cuda")) == expected


def test_the_roof_is_the_slower_of_reading_and_multiplying() -> None:
    roof = Roof(read_bytes_per_s=10.0, matmul_flops_per_s=100.0)
    assert roof.floor_s(20.0, 100.0) == 2.0
    assert roof.floor_s(20.0, 500.0) == 5.0


def test_a_run_writes_what_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(DEFAULTS, "cpu", SWEEP)
    monkeypatch.setattr("chitu_like.bench.roof.READ_BYTES", {"cpu": 1 << 20})
    monkeypatch.setattr("chitu_like.bench.roof.MATMUL_SIZE", {"cpu": 64})
    path = tmp_path / "ops.json"
    command = ["--device", "cpu", "--op", "*_norm,o_proj", "--impl", "torch", "--json", str(path)]
    assert run("benchmark_ops.py", command) == 0
    found = json.loads(path.read_text())
    assert {(row["op"], row["kind"]) for row in found["rows"]} == {
        ("rms_norm", "torch"),
        ("add_rms_norm", "torch"),
        ("embed_rms_norm", "torch"),
        ("o_proj", "torch"),
    }
    for row in found["rows"]:
        share = row["bytes_per_s"] / found["roof"]["read_bytes_per_s"]
        assert row["roof_share"] == pytest.approx(
            max(share, row["flops_per_s"] / found["roof"]["matmul_flops_per_s"])
        )
    assert "o_proj" in capsys.readouterr().out


def test_an_unknown_op_is_the_users_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_reporting("x", lambda: run("x", ["--op", "rms_nrom"])) == 2
    assert "rms_norm" in capsys.readouterr().err


def test_an_implementation_that_fails_costs_the_others_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaks(at: Setting, kind: str) -> Work:
        raise RuntimeError("no such kernel image")

    broken = Case(name="broken", kinds=lambda at: ["torch"], make=breaks)
    monkeypatch.setattr("chitu_like.bench.ops.CASES", (broken, *select_cases(["rms_norm"])))
    monkeypatch.setitem(DEFAULTS, "cpu", SWEEP)
    monkeypatch.setattr("chitu_like.bench.roof.READ_BYTES", {"cpu": 1 << 20})
    monkeypatch.setattr("chitu_like.bench.roof.MATMUL_SIZE", {"cpu": 64})
    assert run("benchmark_ops.py", ["--device", "cpu"]) == 1
    printed = capsys.readouterr().out
    assert "rms_norm" in printed
    assert "FAILED: broken by torch" in printed
