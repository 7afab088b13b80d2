from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from chitu_like import LLM
from chitu_like.bench.busy_intervals import GapKind, Span
from chitu_like.bench.engine_run import NO_PREFIX_CACHE
from chitu_like.bench.gpu_idle import TABLE_WIDTH, WARMUP_STEPS, measure_idle, run, tables
from chitu_like.cli.command_line import run_reporting
from chitu_like.core.errors import CapacityError

TINY = ("models=tiny-chat", "infer.device=cpu", "infer.num_blocks=64", "infer.max_reqs=4")


class FakeProfiler:
    """Says that each noted step ran one kernel of 0.3 ms, 0.5 ms after the one before."""

    def __init__(self) -> None:
        self.num_steps: int | None = None

    def start(self) -> None:
        assert self.num_steps is None
        self.num_steps = 0

    def step(self) -> None:
        assert self.num_steps is not None
        self.num_steps += 1

    def stop(self) -> list[Span]:
        assert self.num_steps is not None
        return [
            Span(start_us=500.0 * step, end_us=500.0 * step + 300.0, name="kernel")
            for step in range(self.num_steps - WARMUP_STEPS)
        ]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(*TINY, NO_PREFIX_CACHE, progress=False) as loaded:
        yield loaded


def test_the_step_is_timed_first_and_profiled_after(llm: LLM) -> None:
    profiler = FakeProfiler()
    row = measure_idle(
        llm,
        [[5] * 20, [6] * 20],
        num_steps=5,
        profiler=profiler,
        clock=lambda: llm.stats().num_steps * 0.5e-3,  # half a millisecond a step
    )
    assert profiler.num_steps == WARMUP_STEPS + 5
    busy_share = 5 * 300 / 2300
    assert (row.step_ms, row.longest_step_ms) == (pytest.approx(0.5), pytest.approx(0.5))
    assert row.traced_idle_share == pytest.approx(1 - busy_share)
    assert row.busy_ms == pytest.approx(0.5 * busy_share)
    assert row.clocked_idle_share == pytest.approx(1 - busy_share)
    assert row.kernels_per_step == pytest.approx(5 * 500 / 2300)
    assert row.kernels == [("kernel", 5, pytest.approx(1500.0))]
    assert llm.stats().num_running == 0  # what was left was given up


def test_one_long_step_is_told_and_counts_as_one(llm: LLM) -> None:
    begin = llm.stats().num_steps
    row = measure_idle(
        llm,
        [[5] * 20, [6] * 20],
        num_steps=5,
        profiler=FakeProfiler(),
        clock=lambda: llm.stats().num_steps + 100.0 * (llm.stats().num_steps > begin + 8),
    )
    assert (row.step_ms, row.longest_step_ms) == (pytest.approx(1e3), pytest.approx(101e3))


def test_a_wide_table_shows_every_name_and_figure(llm: LLM) -> None:
    row = measure_idle(llm, [[5] * 20], num_steps=3, profiler=FakeProfiler())
    name = "void flashinfer::PersistentVariableLengthMergeStates<8u, 16u>(float*)"
    gaps = [GapKind(before=name, after=name, count=17_000, total_us=8.5e6, longest_us=98765.4)]
    row = replace(row, activity=replace(row.activity, gaps=gaps), kernels=[(name, 17_000, 9e6)])
    console = Console(file=io.StringIO(), width=TABLE_WIDTH)
    for table in tables(row, 3):
        console.print(table)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "…" not in text
    assert text.count("PersistentVariableLengthMergeStates") == 3
    for shown in ("gap after", "longest us", "of time", "500.0", "98765.4", "of busy time"):
        assert shown in text


def test_a_batch_that_would_not_run_at_once_is_refused(llm: LLM) -> None:
    with pytest.raises(CapacityError):
        measure_idle(llm, [[5] * 20] * 5, num_steps=2, profiler=FakeProfiler())


def test_without_a_gpu_there_is_nothing_to_look_at(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_reporting("idle", lambda: run("idle", list(TINY))) == 2
    assert "CUDA" in capsys.readouterr().err


@pytest.mark.gpu
def test_a_real_trace_has_kernels_and_gaps(tmp_path: Path) -> None:
    path = tmp_path / "idle.json"
    command = ["--batches", "1,4", "--context", "64", "--steps", "10", "--json", str(path)]
    assert run("idle", [*command, "models=tiny-chat", "infer.num_blocks=256"]) == 0
    for row in json.loads(path.read_text())["rows"]:
        assert row["kernels_per_step"] >= 1
        assert row["busy_ms"] > 0
        assert 0 <= row["traced_idle_share"] < 1
