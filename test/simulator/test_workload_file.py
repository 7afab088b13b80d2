from __future__ import annotations

import itertools
import random
import statistics
from pathlib import Path

import pytest

from chitu_like.config.files import values_dir
from chitu_like.core.errors import ConfigError
from chitu_like.simulator.lengths import Lengths, Lognormal, Quantiles, Uniform
from chitu_like.simulator.workload_file import Workload, load_workload

NAMES = sorted(file.stem for file in (values_dir() / "workloads").glob("*.yaml"))
PLAIN = "arrivals: {kind: poisson, rate: 1}\ninput_len: {fixed: 3}\noutput_len: {fixed: 2}\n"


def first(workload: Workload, count: int, rate: float | None = None, seed: int = 0) -> list:  # type: ignore[type-arg]
    return list(itertools.islice(workload.requests(rate=rate, seed=seed), count))


@pytest.mark.parametrize(
    "lengths",
    [
        Uniform(low=3, high=9),
        Lognormal(median=400, sigma=1.0, low=4, high=4096),
        Lognormal(median=400, sigma=1.0, low=300, high=500),
        Lognormal(median=50, sigma=0, low=1, high=40),
        Quantiles([(0, 7), (0.5, 129), (0.99, 601), (1, 1000)]),
    ],
    ids=repr,
)
def test_the_mean_is_that_of_what_is_drawn(lengths: Lengths) -> None:
    rng = random.Random(0)
    drawn = [lengths.draw(rng) for _ in range(20_000)]
    error = statistics.stdev(drawn) / len(drawn) ** 0.5
    assert statistics.fmean(drawn) == pytest.approx(lengths.mean, abs=4 * error + 0.1)


@pytest.mark.parametrize("name", NAMES)
def test_a_named_workload_is_seeded_and_keeps_its_rate(name: str) -> None:
    workload = load_workload(name)
    requests = first(workload, 4000, rate=10.0, seed=3)
    assert requests == first(workload, 4000, rate=10.0, seed=3)
    assert requests[:50] != first(workload, 50, rate=10.0, seed=4)
    assert [request.index for request in requests] == list(range(4000))
    assert requests[-1].arrival_s == pytest.approx(400.0, rel=0.2)
    input_len = statistics.fmean(request.input_len for request in requests)
    assert input_len == pytest.approx(workload.mean_input_len, rel=0.1)


def test_another_rate_leaves_the_lengths_as_they_are() -> None:
    workload = load_workload("poisson")
    slow, fast = first(workload, 50, rate=1.0), first(workload, 50, rate=7.0)
    assert [r.input_len for r in slow] == [r.input_len for r in fast]
    assert [r.arrival_s / 7 for r in slow] == pytest.approx([r.arrival_s for r in fast])


def test_a_trace_goes_on_from_the_beginning(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("arrival_s,input,output\n0,10,1\n1,20,2\n3,30,3\n")
    workload = load_workload(str(path))
    assert (workload.mean_input_len, workload.mean_output_len) == (20.0, 2.0)
    assert [r.arrival_s for r in first(workload, 5)] == [0.0, 1.0, 3.0, 4.5, 5.5]
    requests = first(workload, 6, rate=4.0)
    assert requests[3].arrival_s == pytest.approx(0.75)
    assert [r.input_len for r in requests] == [10, 20, 30] * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PLAIN.replace("poisson", "poison"), "arrivals: kind='poison': must be one of poisson"),
        (PLAIN.replace("rate: 1", "rate: 0"), "arrivals: rate=0: must be a number from 1e-06"),
        (PLAIN.replace("rate: 1", "rate: 1, cv: 2"), "cv=2: must be left out: it has no effect on"),
        (PLAIN.replace("{fixed: 3}", "{fixed: 0}"), "input_len: fixed=0: must be a whole number"),
        (PLAIN.replace("{fixed: 3}", "{low: 4, high: 3}"), "high=3: must be a whole number from 4"),
        (
            PLAIN.replace("{fixed: 3}", "{quantiles: [[0, 1]]}"),
            "quantiles=[[0, 1]]: must be a list",
        ),
        (
            PLAIN.replace("{fixed: 3}", "{quantiles: [[0, 9], [1, 2]]}"),
            "quantiles=[[0, 9], [1, 2]]: must be a list of [share, tokens]",
        ),
        (PLAIN.replace("{fixed: 3}", "{mean: 3}"), "input_len: unknown key 'mean'"),
        (PLAIN + "more: 1\n", "unknown key 'more'"),
    ],
)
def test_a_broken_file_is_one_line_with_place_and_key(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        load_workload(str(path))
    assert str(raised.value).startswith(str(path))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_name_that_is_none_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="workload=azur_conv: no such file or name: did you mean"):
        load_workload("azur_conv")
    with pytest.raises(ConfigError, match="give a file, or one of azure_code"):
        load_workload("qqq")
