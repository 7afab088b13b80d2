"""The control path's own benchmark: a real channel, a real worker process, every part timed."""

from __future__ import annotations

import json

import pytest

from chitu_like.bench.control import PARTS, ControlPath, run
from chitu_like.core.errors import ConfigError


@pytest.mark.slow
def test_a_step_is_timed_part_by_part_through_a_real_worker(tmp_path):
    file = tmp_path / "control.json"
    arguments = ["--running", "3", "--workers", "0,1", "--steps", "4", "--warmup", "1"]
    assert run("bench control", [*arguments, "--json", str(file)]) == 0
    alone, with_worker = json.loads(file.read_text())["rows"]
    assert [row["num_workers"] for row in (alone, with_worker)] == [0, 1]
    for row in (alone, with_worker):
        assert set(row["parts_us"]) == set(PARTS)
        assert 0 < row["message_bytes"] < 100
        assert row["step_ms"] * 1e3 >= max(row["parts_us"].values())
    assert with_worker["parts_us"]["send"] > alone["parts_us"]["send"]


def test_a_decode_step_of_256_requests_is_a_small_message():
    path = ControlPath(num_running=256, num_workers=0, num_steps=3, policy="prefill_first")
    path.step()  # the prefill
    path.forget()
    for _ in range(3):
        path.step()
    assert path.row().message_bytes < 4096


@pytest.mark.parametrize("workers", ["-1", "two"])
def test_a_number_of_workers_that_is_none_is_refused(workers):
    with pytest.raises(ConfigError, match="workers"):
        run("bench control", ["--workers", workers])
