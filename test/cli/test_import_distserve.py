from __future__ import annotations

import json
from pathlib import Path

import pytest

from chitu_like.cli import main
from chitu_like.cluster.cost_model import BatchShape
from chitu_like.cluster.profile import Profile
from chitu_like.simulator.traces import read_trace

A, B, C = 16.0, 0.1, 1e-5
FIT = {
    "decoding_large_small_bs_threshold": 95,
    "prefill": [A, B, C],
    "decoding_smallbs": [20, 0.001, 0.04],
    "decoding_largebs": [7, 0.001, 0.16],
}
CAPACITIES = """\
model,tp,pp,max_num_tokens
facebook/opt-13b,1,1,66144
facebook/opt-13b,1,2,163008
facebook/opt-13b,2,1,163000
facebook/opt-66b,1,2,11600
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    write(tmp_path, "fits.json", {"facebook/opt-13b": {"1": FIT, "2": FIT}})
    (tmp_path / "room.csv").write_text(CAPACITIES)
    rows = [
        {"start_time": 0.0, "prompt_len": 10, "output_len": 2, "prompt": "left alone"},
        {"start_time": 0.25, "prompt_len": 20, "output_len": 3},
    ]
    write(tmp_path, "workload.json", rows)
    return tmp_path


def write(folder: Path, name: str, values: object) -> None:
    (folder / name).write_text(json.dumps(values))


def words(folder: Path) -> list[str]:
    given = {"coefficients": "fits.json", "capacities": "room.csv", "workload": "workload.json"}
    typed = ["import-distserve", "--out", str(folder / "out")]
    for key, name in given.items():
        typed += [f"--{key}", str(folder / name)]
    return typed


def test_fits_capacities_and_workload_are_written_and_read(files: Path) -> None:
    assert main(words(files)) == 0
    profile = Profile.read(files / "out" / "profile")
    facts = profile.model("opt-13b")
    assert (facts.num_layers, facts.num_heads, facts.activation_bytes) == (40, 40, 5120 * 2)
    one_prompt = BatchShape(num_prefill_tokens=100, prefill_pairs=5050, num_chunks=1)
    milliseconds = A + B * 100 + C * 100**2 + 1 + 2 + 1e-4 * 100
    step = profile.step_cost("opt-13b", "a100-80g", tp=2)
    assert step.seconds(one_prompt) == pytest.approx(milliseconds / 1e3)
    assert profile.kv_blocks("opt-13b", "A100-80G") == 66144 // 16
    assert profile.kv_blocks("opt-13b", "A100-80G", num_layers=20) == 163008 // 16
    rows = read_trace(files / "out" / "workload.csv")
    assert [(r.arrival_s, r.input_len, r.output_len) for r in rows] == [(0, 10, 2), (0.25, 20, 3)]


def test_the_workload_alone_will_do(files: Path) -> None:
    words_ = ["--workload", str(files / "workload.json"), "--out", str(files / "alone")]
    assert main(["import-distserve", *words_]) == 0
    assert sorted(path.name for path in (files / "alone").iterdir()) == ["workload.csv"]


def test_memory_stands_in_for_capacities(files: Path) -> None:
    typed = ["--coefficients", str(files / "fits.json"), "--memory", "80 * GB"]
    assert main(["import-distserve", *typed, "--out", str(files / "out")]) == 0
    profile = Profile.read(files / "out" / "profile")
    assert 50_000 < 16 * profile.kv_blocks("opt-13b", "A100-80G") < 66_144


def test_a_model_that_nobody_knows_brings_its_facts(files: Path) -> None:
    write(files, "fits.json", {"me/mine": {"1": FIT}})
    facts = {"mine": {"num_layers": 4, "layer_bytes": 1e6, "activation_bytes": 128}}
    write(files, "facts.json", facts)
    assert main([*words(files), "--facts", str(files / "facts.json")]) == 0
    assert Profile.read(files / "out" / "profile").model("mine").num_layers == 4


ROW = {"start_time": 0, "prompt_len": 1, "output_len": 1}


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("fits.json", {}, "fits.json: holds no model"),
        ("fits.json", {"a/x": {"1": FIT}, "b/x": {"1": FIT}}, "fits.json: b/x: another model is"),
        ("fits.json", {"facebook/opt-13b": {}}, "fits.json: facebook/opt-13b: give coefficients"),
        ("fits.json", {"facebook/opt-13b": {"0": FIT}}, "fits.json: facebook/opt-13b: give coeff"),
        ("fits.json", {"opt-13b": {"1": {**FIT, "prefill": [1, 2]}}}, "fits.json: "),
        ("fits.json", {"opt-13b": {"1": {"prefill": [1, 2, 3]}}}, "decoding_smallbs"),
        ("fits.json", {"mine": {"1": FIT}}, "nothing is known of model mine: give a model.json"),
        ("fits.json", {"../..": {"1": FIT}}, "nothing is known of model .."),
        ("workload.json", [], "workload.json: holds no request"),
        ("workload.json", [ROW, {**ROW, "prompt_len": 0}], "workload.json: [1] prompt_len=0: give"),
        (
            "workload.json",
            [{**ROW, "output_len": 10**9}],
            "workload.json: [0] output_len=1000000000",
        ),
        ("workload.json", [{**ROW, "start_time": -1}], "workload.json: [0] start_time=-1"),
        ("workload.json", [{"start_time": 0}], "prompt_len"),
        ("workload.json", {"a": 1}, "workload.json: "),
        ("room.csv", "model;tp", "room.csv: the first row must be model,tp,pp,max_num_tokens"),
        ("room.csv", f"{CAPACITIES}opt-13b,1,x,3\n", "room.csv: row 6: pp=x: give a whole number"),
        ("room.csv", f"{CAPACITIES}opt-13b,1\n", "room.csv: row 6: pp=None: give a whole number"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2_and_nothing_is_written(
    files: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    values: object,
    message: str,
) -> None:
    if isinstance(values, str):
        (files / name).write_text(values)
    else:
        write(files, name, values)
    assert main(words(files)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (files / "out").exists()


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ([], "nothing to import: give --coefficients, --workload or both"),
        (["--workload", "w", "--capacities", "c"], "--capacities needs --coefficients"),
        (["--coefficients", "none", "--memory", "80 GB"], "--memory=80 GB: give a number"),
        (["--coefficients", "none.json"], "none.json: cannot be read"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    typed: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["import-distserve", *typed, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
