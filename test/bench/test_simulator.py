from __future__ import annotations

import json
from pathlib import Path

import pytest

from chitu_like.bench.simulator import measure_instances
from chitu_like.cli import main


def test_tokens_are_counted_and_time_passes() -> None:
    found = measure_instances(20, 2, 10.0)
    assert found["requests"] == 20
    assert found["tokens"] > 20
    assert found["tokens_per_wall_s"] * found["wall_s"] == pytest.approx(found["tokens"])


def test_the_command_writes_json(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    words = ["bench", "simulator", "--seconds", "2", "--requests", "5", "--json", str(path)]
    assert main(words) == 0
    found = json.loads(path.read_text())
    assert found["layers"]["simulated_s"] == 2
    assert {"instances", "provenance"} <= set(found)
