from __future__ import annotations

import json
from pathlib import Path

import pytest

from chitu_like.core.batch import ScheduledBatch
from chitu_like.core.errors import ConfigError

pytest.importorskip("torch")
from chitu_like.bench.engine_tape import Tape
from chitu_like.bench.simulator_truth import FIGURES, run

TINY = ["models=tiny-chat", "infer.device=cpu", "infer.num_blocks=400"]


@pytest.mark.slow
def test_every_load_gets_a_row_of_measured_and_simulated_figures(tmp_path: Path) -> None:
    """How close they are is a timing, and so no test's business."""
    out = tmp_path / "truth.json"
    one_thread = ["--cpu-clock", "infer.schedule_overlap=false"]
    arguments = [
        *TINY,
        *one_thread,
        "--num-requests",
        "12",
        "--loads",
        "0.8,1.5",
        "--json",
        str(out),
    ]
    assert run("truth", arguments) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [row["load"] for row in rows] == [0.8, 1.5]
    for row in rows:
        for name in FIGURES:
            assert row[f"{name} measured"] > 0
            assert row[f"{name} simulated"] > 0


def test_a_batch_counts_where_its_start_and_its_end_were_seen() -> None:
    """The host comes late for the second: when that ended, and the third began, nobody knows."""
    batch = ScheduledBatch(0, [0], [1], [3], [True], [7], [[]], [], [], [], 1)
    tape = Tape(
        max_in_flight=2,
        batches=[batch] * 5,
        spans_s=[(0.0, 1.0), (0.1, 2.5), (1.1, 3.0), (2.6, 4.0), (5.0, 6.5)],
        waits_s=[0.5, 0.0, 0.4, 0.9, 1.0],
    )
    assert [round(found.seconds, 6) for found in tape.measured()] == [1.0, 1.0, 1.5]


def test_two_threads_are_not_counted_on_one_clock() -> None:
    with pytest.raises(ConfigError, match="schedule_overlap=false"):
        run("truth", [*TINY, "--cpu-clock"])
