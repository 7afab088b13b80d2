from __future__ import annotations

from pathlib import Path

import pytest
from simulator.simulated import instance_shape, requests_at

from chitu_like.core.errors import ConfigError
from chitu_like.simulator.plots import plot_attainment, plot_latencies, plot_timeline
from chitu_like.simulator.results import Results, Slo
from chitu_like.simulator.service import simulate

pytest.importorskip("matplotlib")


def run(gap_s: float) -> Results:
    plan = requests_at([gap_s * i for i in range(40)])
    return simulate(plan, [instance_shape()] * 2, slo=Slo(ttft_s=0.02, tpot_s=0.02))


def test_pictures_show_every_run_by_name(tmp_path: Path) -> None:
    runs = {"busy": run(0.005), "idle": run(0.1)}
    plot_timeline(tmp_path / "deep" / "timeline.svg", runs["busy"])
    plot_latencies(tmp_path / "cdf.svg", runs)
    plot_attainment(tmp_path / "attainment.svg", runs)
    for name in ("deep/timeline.svg", "cdf.svg", "attainment.svg"):
        assert (tmp_path / name).stat().st_size > 5000
    assert "busy" in (tmp_path / "cdf.svg").read_text()


def test_a_picture_of_no_known_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        plot_timeline(tmp_path / "a.txt.unknown", run(0.1))
