from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench.fake_openai import FakeOpenAI, serving

from chitu_like.bench import plot_serving
from chitu_like.bench.latency import ServingSummary, Spread
from chitu_like.bench.serving_sweep import Curve, RatePoint, sweep_table
from chitu_like.cli import main
from chitu_like.core.errors import ConfigError

WORDS = [
    "--input-len",
    "4",
    "--output-len",
    "3",
    "--warmup",
    "1",
    "--model",
    "m",
    "--slo-ttft",
    "60000",
]


def point(rate: float, attainment: float | None) -> RatePoint:
    ms = Spread(mean=0.001, p50=0.002, p90=0.003, p99=0.004)
    return RatePoint(
        rate=rate,
        summary=ServingSummary(
            num_requests=8,
            num_failed=1,
            num_short=0,
            errors={},
            num_input_tokens=80,
            num_output_tokens=160,
            elapsed_s=2.0,
            requests_per_s=3.5,
            input_tokens_per_s=40.0,
            output_tokens_per_s=80.0,
            ttft_s=ms,
            tpot_s=None,
            itl_s=None,
            e2e_s=ms,
            late_s=None,
            goodput=None if attainment is None else 3.5 * attainment,
            slo_attainment=attainment,
        ),
    )


def test_each_rate_gets_its_own_load_and_one_warm_up_serves_all(tmp_path: Path) -> None:
    fake, path = FakeOpenAI(), tmp_path / "sweep.json"
    with serving(fake) as url:
        words = ["--base-url", url, "--rates", "40,80", "--num-requests", "6", *WORDS]
        assert main(["bench", "serving", *words, "--json", str(path)]) == 0
    assert len(fake.bodies) == 1 + 2 * 6
    assert len({str(body["prompt"]) for body in fake.bodies}) == 1 + 2 * 6  # no cache helps
    sweep = json.loads(path.read_text())["sweep"]
    assert [found["rate"] for found in sweep] == [40, 80]
    assert all(found["num_requests"] == 6 and found["slo_attainment"] == 1.0 for found in sweep)


def test_beyond_saturation_no_higher_rate_is_tried(tmp_path: Path) -> None:
    path = tmp_path / "sweep.json"
    with serving(FakeOpenAI()) as url:
        words = ["--base-url", url, "--rates", "50,100", "--num-requests", "3", *WORDS]
        words += ["--slo-ttft", "0.000001", "--json", str(path)]
        assert main(["bench", "serving", *words]) == 0
    assert len(json.loads(path.read_text())["sweep"]) == 1


def test_only_requests_that_fit_are_drawn(tmp_path: Path) -> None:
    fake, lengths = FakeOpenAI(), tmp_path / "lengths.csv"
    lengths.write_text("input_tokens,output_tokens\n3,4\n50,60\n5,5\n")
    with serving(fake) as url:
        words = ["--base-url", url, "--rates", "100", "--num-requests", "4", *WORDS]
        words += ["--lengths", str(lengths), "--max-request-len", "10"]
        assert main(["bench", "serving", *words]) == 0
    prompts = [body["prompt"] for body in fake.bodies[1:]]
    assert sorted(map(len, prompts)) == [3, 3, 5, 5]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "words",
    [
        ["--rates", "1,0"],
        ["--rates", "1", "--rate", "2"],
        ["--rates", "1", "--iterations", "2"],
        ["--rates", "1", "--csv", "x.csv"],
    ],
)
def test_mistakes_are_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serving", *words]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_file_of_requests_that_are_all_too_long_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lengths = tmp_path / "lengths.csv"
    lengths.write_text("input_tokens,output_tokens\n50,60\n")
    words = ["--lengths", str(lengths), "--max-request-len", "100", "--num-requests", "1"]
    assert main(["bench", "serving", *words]) == 2
    assert "--max-request-len 100" in capsys.readouterr().err


def test_a_row_says_what_the_summary_says() -> None:
    columns = [list(column.cells) for column in sweep_table([point(4, 0.75)]).columns]
    assert [cell for (cell,) in columns] == [
        "4", "3.50", "80", "2.0", "4.0", "-", "-", "2.62", "75%", "1",
    ]  # fmt: skip


def test_a_server_is_saturated_when_most_requests_miss_the_slo() -> None:
    assert [point(1, share).is_saturated for share in (None, 0.9, 0.5, 0.4)] == [
        False,
        False,
        False,
        True,
    ]


def test_several_servers_share_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="extra: plot")
    words = []
    for name, attainment in (("ours", 0.9), ("theirs", None)):
        path = tmp_path / f"{name}.json"
        points = [point(rate, attainment).as_json() for rate in (1, 2)]
        path.write_text(json.dumps({"sweep": points}))
        words.append(f"{name}={path}")
    picture = tmp_path / "serving.png"
    assert plot_serving.run("plot_serving.py", [str(picture), *words]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("text", ["{", "{}", "3"])
def test_a_file_without_a_sweep_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="no sweep"):
        Curve.read("x", path)
