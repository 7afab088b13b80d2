"""Busy shares from spans, the trace file, and the whole benchmark under torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from chitu_like.bench.pipeline import evaluate
from chitu_like.bench.stage_trace import (
    RankTrace,
    Span,
    all_busy_share,
    busy_share,
    write_chrome_trace,
)
from chitu_like.core.errors import PeerError

REPO = Path(__file__).resolve().parents[2]


def trace_of(rank: int, *times: tuple[float, float], num_reqs: int = 4) -> RankTrace:
    spans = [Span(step, num_reqs, num_reqs, *time) for step, time in enumerate(times)]
    return RankTrace(rank=rank, pp_rank=rank, tp_rank=0, spans=spans)


FIRST = trace_of(0, (0.0, 1.0), (1.0, 2.0), (3.0, 4.0), (4.0, 5.0))
SECOND = trace_of(1, (1.0, 2.0), (2.0, 2.5), (4.0, 5.0), (5.0, 6.0))


def test_a_busy_share_counts_what_lies_within_the_time_asked_for():
    assert busy_share(FIRST.spans, 0.0, 4.0) == 0.75
    assert busy_share(FIRST.spans, 0.5, 1.5) == 1.0
    assert busy_share(FIRST.spans, 2.0, 3.0) == 0.0


def test_all_are_busy_only_where_every_rank_is():
    assert all_busy_share([FIRST, SECOND], 0.0, 4.0) == 0.25
    assert all_busy_share([FIRST, SECOND], 1.0, 2.0) == 1.0
    assert all_busy_share([FIRST, FIRST], 0.0, 4.0) == 0.75
    assert all_busy_share([FIRST, SECOND], 2.0, 4.0) == 0.0


def test_the_time_in_which_everybody_decodes_is_evaluated():
    result = evaluate([FIRST, SECOND], num_running=8)
    assert [row.busy for row in result.rows] == [0.75, 1.5 / 4]
    assert [row.num_steps for row in result.rows] == [3, 2]
    assert result.rows[0].mean_step_ms == 1000.0
    assert result.decode_tokens_per_s == 3 * 4 / 4.0


def test_without_such_a_time_more_output_is_asked_for():
    with pytest.raises(PeerError, match="--output-len"):
        evaluate([FIRST, SECOND], num_running=64)


def test_the_trace_has_a_line_a_rank_and_a_bar_a_span(tmp_path):
    write_chrome_trace(tmp_path / "trace.json", [FIRST, SECOND])
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    lines = [event for event in events if event["ph"] == "M"]
    bars = [event for event in events if event["ph"] == "X"]
    assert [line["args"]["name"] for line in lines] == [
        "stage 0, tp 0, rank 0",
        "stage 1, tp 0, rank 1",
    ]
    assert len(bars) == 8
    assert (bars[4]["tid"], bars[4]["ts"], bars[4]["dur"]) == (1, 1e6, 1e6)


@pytest.mark.slow
def test_the_benchmark_traces_both_stages_under_torchrun(tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"),
            *("--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0"),
            *("benchmarks/benchmark_pipeline.py", "--running", "8", "--output-len", "24"),
            *("--out", str(tmp_path), "models=tiny-chat", "infer.pp_size=2"),
        ],
        cwd=REPO,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert [row["pp_rank"] for row in result["rows"]] == [0, 1]
    assert all(row["num_steps"] > 30 and 0.0 < row["busy"] <= 1.0 for row in result["rows"])
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
