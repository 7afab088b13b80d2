from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from helix_examples import CLUSTER, MACHINES, SIMULATOR, SOLUTION

from chitu_like.cli import main
from chitu_like.cluster.cluster_file import read_cluster
from chitu_like.cluster.layer_placement_file import read_layer_placement
from chitu_like.cluster.profile import Profile, find_profile

FIVE = {str(layers): 100 * layers for layers in range(1, 6)}
MACHINE = {
    "max_num_layers": 5,
    "vllm_num_blocks_by_layers": FIVE,
    "prompt_max_requests_by_layers": FIVE,
    "decode_max_tokens_by_layers": FIVE,
    "remark": "nobody looks at this",
}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """All that Helix has for one model, tiny."""
    for name, text in (
        ("cluster.ini", CLUSTER),
        ("machines.ini", MACHINES),
        ("solution.ini", SOLUTION),
        ("simulator.ini", SIMULATOR),
    ):
        (tmp_path / name).write_text(text, encoding="utf-8")
    for device in ("a100", "t4"):
        folder = tmp_path / "models" / "llama2_70b" / device
        folder.mkdir(parents=True)
        (folder / "prompt_bs2time.csv").write_text("0,0\n100,7.5\n2048,150\n")
        (folder / "decode_bs2time.csv").write_text("0,0\n1,2\n400,4\n")
    (tmp_path / "constants.json").write_text(
        json.dumps({"source": "by hand", "llama2_70b": {"A100": MACHINE, "T4": MACHINE}})
    )
    return tmp_path


def words(folder: Path, **changed: str | None) -> list[str]:
    given: dict[str, str | None] = {
        "cluster": "cluster.ini",
        "machines": "machines.ini",
        "solution": "solution.ini",
        "profiles": "models",
        "constants": "constants.json",
        "out": "out",
        **changed,
    }
    typed = ["import-helix"]
    for key, value in given.items():
        if value is not None:
            typed += [f"--{key}", value if key == "model" else str(folder / value)]
    return typed


def test_all_three_are_written_and_read(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(files)) == 0
    cluster = read_cluster(files / "out" / "cluster.yaml")
    assert [node.device for node in cluster.nodes] == ["A100", "T4", "T4"]
    assert len(cluster.links) == 8
    placement = read_layer_placement(files / "out" / "placement.yaml")
    assert placement.num_layers == 80
    assert placement.held == {"compute_node_2": range(3), "compute_node_3": range(2, 4)}
    assert placement.held.keys() <= cluster.by_name.keys()
    profile = find_profile(str(files / "out" / "profile"))
    times = profile.layer_times("llama2_70b", "A100")
    assert times.prompt_s(50) == pytest.approx(3.75e-3)
    assert times.kv_tokens(3) == 16 * 300
    printed = capsys.readouterr().out
    assert "3 nodes, 8 links" in printed
    assert "llama2_70b on a100, t4" in printed
    assert "layers that no node holds: 4, 5, " in printed
    assert (
        f"model=llama2_70b plan.method=load plan.load={files / 'out' / 'placement.yaml'}" in printed
    )


@pytest.mark.parametrize(
    ("model", "num_layers", "layer_bytes", "activation_bytes", "typical", "small", "speeds"),
    [
        (
            "llama2_70b",
            80,
            1.53e9,
            16384,
            [8, 3, 4, 9, 3, 6, 12],
            [12, 4, 7, 14, 4, 9, 18],
            [80, 40, 20, 30, 12.5, 20, 30],
        ),
        (
            "llama1_30b",
            60,
            1e9,
            13312,
            [12, 4, 8, 14, 4, 10, 20],
            [18, 7, 11, 22, 7, 15, 30],
            [48, 25, 9, 15, 8, 15, 23],
        ),
    ],
)
def test_what_helix_assumes_of_its_models_is_written(
    files: Path,
    model: str,
    num_layers: int,
    layer_bytes: float,
    activation_bytes: float,
    typical: list[int],
    small: list[int],
    speeds: list[float],
) -> None:
    typed = words(files, solution=None, profiles=None, constants=None, model=model)
    assert main(typed) == 0
    assert not (files / "out" / "placement.yaml").exists()
    profile = Profile.read(files / "out" / "profile")
    facts, planning = profile.model(model), profile.planning(model)
    assert (facts.num_layers, facts.layer_bytes) == (num_layers, layer_bytes)
    assert (facts.activation_bytes, facts.token_bytes) == (activation_bytes, 2)
    assert (planning.mean_input, planning.mean_output, planning.longest_input) == (750, 240, 2048)
    devices = ["A100", "V100", "L4", "L4x2", "T4", "T4x2", "T4x4"]
    assert planning.typical_layers == dict(zip(devices, typical, strict=True))
    assert planning.typical_layers_small == dict(zip(devices, small, strict=True))
    assert planning.start_speed == dict(zip(devices, speeds, strict=True))


def test_a_simulator_cluster_needs_no_machines(files: Path) -> None:
    typed = words(files, cluster="simulator.ini", machines=None, profiles=None, constants=None)
    assert main(typed) == 0
    assert len(read_cluster(files / "out" / "cluster.yaml").nodes) == 2
    assert read_layer_placement(files / "out" / "placement.yaml").num_layers == 4
    assert not (files / "out" / "profile").exists()


def test_machines_that_decide_nothing_are_said_to(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(files, cluster="simulator.ini", profiles=None, constants=None)) == 0
    assert "machines.ini is not needed: " in capsys.readouterr().out


def test_a_model_s_own_folder_will_do(files: Path) -> None:
    assert main(words(files, profiles="models/llama2_70b")) == 0
    assert list(Profile.read(files / "out" / "profile").models) == ["llama2_70b"]


def test_another_model_brings_its_facts(files: Path) -> None:
    (files / "models" / "llama2_70b").rename(files / "models" / "mine")
    (files / "constants.json").write_text(json.dumps({"mine": {"a100": MACHINE, "t4": MACHINE}}))
    facts = {"mine": {"num_layers": 4, "layer_bytes": 1e6, "activation_bytes": 128}}
    (files / "models" / "model.json").write_text(json.dumps(facts))
    assert main(words(files)) == 0
    assert read_layer_placement(files / "out" / "placement.yaml").num_layers == 4
    (files / "models" / "model.json").rename(files / "facts.json")
    assert main(words(files, facts="facts.json", out="again")) == 0
    assert Profile.read(files / "again" / "profile").model("mine").layer_bytes == 1e6


def rename(folder: Path, source: str, target: str) -> None:
    (folder / source).rename(folder / target)


def rewrite(folder: Path, name: str, old: str, new: str) -> None:
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("spoil", "changed", "message"),
    [
        (None, {"cluster": "none.ini"}, "none.ini cannot be read"),
        (None, {"machines": None}, "cluster.ini names types of machines: .*--machines"),
        (None, {"constants": None}, "--profiles needs --constants"),
        (None, {"profiles": None}, "--constants needs --profiles"),
        (None, {"model": "llama3"}, "there is no llama3/<device>/prompt_bs2time.csv"),
        (None, {"profiles": "none"}, "there is no <model>/<device>/prompt_bs2time.csv"),
        (
            lambda files: rename(files, "models/llama2_70b", "models/mine"),
            {},
            "nothing is known of model mine: .*--facts.*llama2_70b, llama1_30b",
        ),
        (
            lambda files: rename(files, "models/llama2_70b/t4", "models/llama2_70b/l4"),
            {},
            "llama2_70b: there is no t4/prompt_bs2time.csv, but the cluster has T4",
        ),
        (
            lambda files: rewrite(files, "constants.json", '"T4"', '"L4"'),
            {},
            "constants.json: llama2_70b: T4 is missing, but the cluster has it",
        ),
        (
            lambda files: rewrite(files, "constants.json", "max_num_layers", "most"),
            {},
            "constants.json: llama2_70b: A100: .*max_num_layers",
        ),
        (
            lambda files: rewrite(files, "constants.json", '"5": 500', '"5": "x"'),
            {},
            r"constants.json: llama2_70b: A100: Expected `int`, got `str`.*vllm_num_blocks",
        ),
        (
            lambda files: rewrite(files, "constants.json", '"5": 500', '"6": 500'),
            {},
            r"constants.json: llama2_70b: A100: vllm_num_blocks_by_layers\[5\]=None",
        ),
        (
            lambda files: rewrite(files, "models/llama2_70b/t4/decode_bs2time.csv", "1,2", "1"),
            {},
            "decode_bs2time.csv: row 2",
        ),
        (
            lambda files: rewrite(files, "solution.ini", "[2, 3]", "[79, 80]"),
            {},
            r"solution.ini: \[Solution\]: node compute_node_3 holds layers 79 to 80",
        ),
        (
            lambda files: rewrite(files, "cluster.ini", "1.25 * gbps", "1.25 * Gbps"),
            {},
            r"cluster.ini: \[Link-0-1\] bandwidth=1.25 \* Gbps: give a number",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2_and_nothing_is_written(
    files: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], None] | None,
    changed: dict[str, str | None],
    message: str,
) -> None:
    if spoil is not None:
        spoil(files)
    assert main(words(files, **changed)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line), line
    assert not (files / "out").exists()
