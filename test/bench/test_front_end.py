"""The front end's own benchmark: a real process between an invented engine and real sockets."""

from __future__ import annotations

import json

import pytest

from chitu_like.bench.front_end import run


@pytest.mark.slow
def test_every_token_is_delivered_and_its_cost_is_told(tmp_path):
    file = tmp_path / "front_end.json"
    sizes = ["--streams", "1,5", "--steps", "60", "--warmup", "5", "--pace", "200"]
    assert run("bench front-end", [*sizes, "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [(row["num_streams"], row["steps_per_s"]) for row in rows] == [
        (1, None),
        (1, 200),
        (5, None),
        (5, 200),
    ]
    for row in rows:
        assert row["tokens_per_s"] > 0
        assert 0 < row["lag_ms"] <= row["lag_p99_ms"]
        assert row["cpu_us"] * row["tokens_per_s"] == pytest.approx(row["cpu_share"] * 1e6)
