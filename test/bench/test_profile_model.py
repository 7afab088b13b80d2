"""script/profile_model.py from end to end: what it writes, planner and simulator can ask."""

from pathlib import Path

import pytest

from chitu_like.bench.profile_model import run
from chitu_like.cluster.cost_model import BatchShape
from chitu_like.cluster.profile import find_profile
from chitu_like.core.errors import ConfigError

SMALL = [
    "models=tiny-chat",
    "infer.device=cpu",
    "infer.max_reqs=8",
    "infer.max_seq_len=256",
    "infer.num_blocks=100",
    "infer.prefill_chunk_size=64",
]


@pytest.mark.slow
def test_a_profile_is_measured_written_and_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "profile"
    quick = ["--out", str(out), "--rounds", "1", "--target-s", "0.001", "--held-out", "6"]
    assert run("profile_model.py", [*quick, *SMALL]) == 0
    printed = capsys.readouterr().out
    assert "relative error of the fit" in printed
    assert f"profile={out} model=tiny-chat: device cpu" in printed
    profile = find_profile(str(out))
    cost = profile.step_cost("tiny-chat", "cpu")
    decode_s = cost.seconds(BatchShape(num_decodes=8, decode_context=800))
    prompt = BatchShape(num_prefill_tokens=64, prefill_pairs=2080, num_chunks=1)
    assert 0 < decode_s < 10
    assert 0 < cost.seconds(prompt) < 10
    assert profile.kv_blocks("tiny-chat", "cpu", block_size=32) == 100
    assert profile.host_cost("tiny-chat", "cpu").step_s >= 0
    assert profile.layer_times("tiny-chat", "CPU").decode_s(4) > 0
    lines = (out / "tiny-chat" / "cpu" / "points_tp1.csv").read_text().splitlines()
    assert sum(",held out," in line for line in lines) == 6
    # Measured again under another name, both are there.
    assert run("profile_model.py", [*quick, "--name", "other", "--device", "Laptop", *SMALL]) == 0
    again = find_profile(str(out))
    assert again.devices_of("other") == ["laptop"]
    assert again.step_cost("tiny-chat", "cpu").seconds(prompt) == cost.seconds(prompt)


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("infer.pp_size=2", r"infer\.pp_size=2: a profile is of whole models"),
        ("deploy.replicas=2", r"deploy\.replicas=2: measure one instance"),
    ],
)
def test_what_cannot_be_profiled_is_one_line(tmp_path: Path, override: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        run("profile_model.py", ["--out", str(tmp_path), "models=tiny-chat", override])
