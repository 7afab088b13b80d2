from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from chitu_like.core.errors import ConfigError
from chitu_like.simulator.clock import VirtualClock
from chitu_like.simulator.distribution import Distribution
from chitu_like.simulator.recorder import FinishedRequest, Recorder
from chitu_like.simulator.results import Slo
from chitu_like.simulator.timeline import MAX_BINS, Timeline


def finished(arrival_s: float, first_s: float, last_s: float, output_len: int) -> FinishedRequest:
    return FinishedRequest(
        index=0,
        arrival_s=arrival_s,
        first_token_s=first_s,
        finished_s=last_s,
        input_len=8,
        output_len=output_len,
        num_cached_tokens=4,
    )


def test_quantiles_are_numpys_within_a_thousandth() -> None:
    rng = random.Random(3)
    values = [rng.lognormvariate(-2, 2) for _ in range(5000)]
    spread = Distribution()
    for value in values:
        spread.add(value)
    for share in (0.01, 0.5, 0.9, 0.99, 1.0):
        right = float(np.quantile(values, share, method="inverted_cdf"))
        assert spread.quantile(share) == pytest.approx(right, rel=1e-3)
    assert spread.mean == pytest.approx(np.mean(values))
    median = float(np.median(values))
    assert spread.share_within(median) == pytest.approx(0.5, abs=0.002)


def test_a_distribution_of_one_value_is_exact() -> None:
    spread = Distribution()
    assert (spread.mean, spread.quantile(0.5), spread.share_within(1.0)) == (None, None, None)
    spread.add(0.3)
    spread.add(0.3)
    assert (spread.quantile(0.01), spread.quantile(0.99)) == (0.3, 0.3)
    spread.add(0.0)
    assert spread.quantile(0.1) == 0.0
    assert spread.curve() == [(0.0, pytest.approx(1 / 3)), (0.3, 1.0)]


def test_a_timeline_keeps_every_amount_while_it_widens() -> None:
    line, rng = Timeline(), random.Random(1)
    total = held = 0.0
    for step in range(4000):
        amount, length_s = rng.random(), rng.random()
        line.add("tokens", step * 0.5, amount)
        line.hold("busy", step * 0.5, step * 0.5 + length_s, 2.0)
        total, held = total + amount, held + 2 * length_s
    rows = line.rows(2001.0)
    assert len(rows["time_s"]) <= MAX_BINS
    assert sum(rows["tokens"]) * line.width_s == pytest.approx(total)
    assert sum(rows["busy"]) * line.width_s == pytest.approx(held)


def test_figures_are_those_of_the_window_alone() -> None:
    clock = VirtualClock()
    recorder = Recorder(clock, slo=Slo(ttft_s=1.0, tpot_s=0.5), warmup_s=10.0, duration_s=10.0)

    def end(request: FinishedRequest) -> None:
        recorder.count("output_tokens", request.output_len)
        recorder.finished(request)

    clock.at(0.0, lambda: recorder.level("devices", 4))
    clock.at(5.0, lambda: end(finished(0.0, 1.0, 5.0, 5)))
    clock.at(12.0, lambda: end(finished(8.0, 9.0, 12.0, 7)))  # good: 1 s, 0.5 s a token
    clock.at(14.0, lambda: end(finished(8.0, 10.0, 14.0, 9)))  # late first token
    clock.at(15.0, lambda: recorder.level("devices", 2))
    clock.at(16.0, lambda: recorder.busy("a", 9.0, 16.0))
    clock.at(18.0, lambda: recorder.carries("a -> b", 17.0, 18.0, 500.0))
    clock.at(25.0, lambda: end(finished(24.0, 24.5, 25.0, 3)))
    clock.run(30.0)
    results = recorder.results()
    expected = {
        "elapsed_s": 10.0,
        "num_finished": 2,
        "decode_tokens_per_s": 1.6,
        "avg_prompt_latency_s": 1.5,
        "avg_decode_latency_s": 0.5,
        "slo_attainment": 0.5,
        "ttft_attainment": 0.5,
        "tpot_attainment": 1.0,
        "goodput_per_s": 0.1,
        "gpu_seconds": 30.0,
        "prefix_hit_share": 0.5,
        "utilisation": 0.6,
    }
    assert {name: results[name] for name in expected} == pytest.approx(expected)
    assert results.links["a -> b"] == pytest.approx({"utilisation": 0.1, "bytes_per_s": 50.0})
    [first, last] = results.cdfs["slo_scale"]
    assert first == pytest.approx((1.0, 0.5), rel=1e-3)
    assert last == (2.0, 1.0)


def test_bytes_and_levels_count_as_far_as_they_lie_in_the_window() -> None:
    clock = VirtualClock()
    recorder = Recorder(clock, warmup_s=10.0, duration_s=10.0)
    clock.at(5.0, lambda: recorder.level("a.kv", 0.75))
    clock.at(5.0, lambda: recorder.level("b.kv", 0.9))
    clock.at(9.0, lambda: recorder.level("b.kv", 0.2))
    clock.at(9.5, lambda: recorder.carries("before", 8.0, 9.5, 100.0))
    clock.at(12.0, lambda: recorder.carries("into", 8.0, 12.0, 100.0))
    clock.at(12.0, lambda: recorder.carries("at once", 12.0, 12.0, 100.0))
    clock.at(15.0, lambda: recorder.level("a.kv", 0.5))
    clock.at(24.0, lambda: recorder.carries("out of", 16.0, 24.0, 100.0))
    clock.at(25.0, lambda: recorder.carries("behind", 25.0, 25.0, 100.0))
    clock.run()
    results = recorder.results()
    moved = {name: link["bytes_per_s"] for name, link in results.links.items()}
    assert moved == {"before": 0.0, "into": 5.0, "at once": 10.0, "out of": 5.0, "behind": 0.0}
    assert results.nodes["a"] == pytest.approx({"kv_mean": 0.625, "kv_most": 0.75})
    assert results.nodes["b"] == pytest.approx({"kv_mean": 0.2, "kv_most": 0.2})


def test_results_are_one_json_with_figures_on_top_and_a_csv(tmp_path: Path) -> None:
    clock = VirtualClock()
    recorder = Recorder(clock)
    clock.at(1.0, lambda: recorder.finished(finished(0.0, 0.5, 1.0, 2)))
    clock.run()
    results = recorder.results().with_figures({"max_flow": 7.0})
    results.write(tmp_path / "out")
    found = json.loads((tmp_path / "out" / "result.json").read_text())
    assert found["max_flow"] == 7.0
    assert found["ttft_p50_s"] == 0.5
    assert found["timeline"]["time_s"][0] == 0.0
    lines = (tmp_path / "out" / "timeline.csv").read_text().splitlines()
    assert lines[0] == "time_s,finished"
    assert len(lines) == 1 + len(found["timeline"]["time_s"])
    assert results.table().row_count >= len(results.figures)
    with pytest.raises(ConfigError, match="gone_s"):
        Recorder(clock).results().with_figures({"gone_s": None})["gone_s"]
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        results.write(tmp_path / "file")


def test_an_slo_without_time_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"tpot_s=0"):
        Slo(tpot_s=0.0)
