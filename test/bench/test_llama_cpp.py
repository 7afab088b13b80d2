from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from chitu_like.bench.cpu_comparison import on_cores
from chitu_like.bench.dummy_gguf import write_dummy_gguf
from chitu_like.bench.llama_cpp_run import LlamaCppRun, read_seconds, read_version
from chitu_like.cli import main
from chitu_like.core.errors import PeerError, UnsupportedError
from chitu_like.core.model_spec import ModelSpec

LINE = '{"n_threads": 2, "pp": 32, "tg": 4, "pl": 8, "t_pp": 0.25, "speed_pp": 1, "t_tg": 2.0}'

TOOL = """
import json, os, sys
words = sys.argv[1:]
if words == ["--version"]:
    print("version: 7 (abc)")
    sys.exit()
given = dict(zip(words[::2], words[1::2]))
if "fail" in given["-m"]:
    sys.exit("no such model")
assert os.path.getsize(given["-m"]) > 0
assert "GOMP_SPINCOUNT" not in os.environ
pp, pl = int(given["-npp"]), int(given["-npl"])
tg, last = map(int, given["-ntg"].split(","))  # of the last run the report gets lost
assert tg > 0 and last > 0 and int(given["-c"]) >= pl * (pp + tg)
print("0.00 W load: adding dummy tokens")
print(json.dumps({"pp": pp, "tg": tg, "pl": pl, "t_pp": 10.0, "t_tg": 0.5 * tg}))
"""


@pytest.fixture
def tool(tmp_path: Path) -> str:
    path = tmp_path / "llama-batched-bench"
    path.write_text(f"#!{sys.executable}\n{TOOL}")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    return path


def qwen2(**changes: object) -> ModelSpec:
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": 70,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    }
    return ModelSpec.from_hf_config(config | changes)


def test_a_report_is_found_among_log_lines() -> None:
    assert read_seconds(f"0.00 W load\n{LINE}\n\n", 32, 4, 8) == (0.25, 2.0)


@pytest.mark.parametrize(
    ("output", "complaint"),
    [
        ("error: unable to load model", "unable to load model"),
        ("", "it said: nothing"),
        (LINE[:-5], "not understood"),
        (LINE.replace("t_tg", "t_decode"), "not understood"),
        (LINE.replace('"pl": 8', '"pl": 1'), "were asked for"),
    ],
)
def test_a_report_of_something_else_is_refused(output: str, complaint: str) -> None:
    with pytest.raises(PeerError, match=complaint):
        read_seconds(output, 32, 4, 8)


def test_the_version_is_what_the_tool_says() -> None:
    assert read_version("version: 0.5 (build 1)\nbuilt with GNU") == "0.5 (build 1)"
    assert read_version("?") == "of unknown version"


def test_the_first_token_is_the_prefill_and_others_are_steps(tool: str, gguf_file: Path) -> None:
    run = LlamaCppRun(tool, gguf_file, 2)
    assert run.version == "7 (abc)"
    prompts = [[1, 2, 3], [4, 5, 6]]
    assert run.seconds(prompts, 1) == 10.0
    assert run.seconds(prompts, 5) == 10.0 + 4 * 0.5


def test_a_tool_that_fails_says_why(tool: str, tmp_path: Path) -> None:
    with pytest.raises(PeerError, match="no such model"):
        LlamaCppRun(tool, tmp_path / "fail.gguf", 2).seconds([[1]], 1)


@pytest.mark.parametrize("tied", [True, False])
def test_the_file_holds_every_weight_of_the_model(tmp_path: Path, tied: bool) -> None:
    gguf = pytest.importorskip("gguf")
    spec = qwen2(tie_word_embeddings=tied)
    write_dummy_gguf(tmp_path / "m.gguf", spec)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert sum(int(tensor.n_elements) for tensor in reader.tensors) == spec.num_parameters()
    assert list(tensors["blk.1.attn_k.weight"].shape) == [32, 16]  # GGUF turns shapes round
    assert tensors["blk.1.attn_k.weight"].tensor_type == gguf.GGMLQuantizationType.BF16
    assert tensors["blk.0.attn_q.bias"].tensor_type == gguf.GGMLQuantizationType.F32
    assert ("output.weight" in tensors) is not tied
    assert reader.fields["qwen2.vocab_size"].contents() == 70


def test_a_family_that_llama_cpp_shapes_otherwise_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    config = qwen2(architectures=["OPTForCausalLM"], model_type="opt", ffn_dim=48)
    with pytest.raises(UnsupportedError, match="opt"):
        write_dummy_gguf(tmp_path / "m.gguf", config)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux chooses cores")
def test_cores_are_given_back() -> None:
    before = os.sched_getaffinity(0)
    with on_cores(1):
        assert os.sched_getaffinity(0) == {min(before)}
    assert os.sched_getaffinity(0) == before


def test_the_comparison_prints_and_writes_both(
    tool: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gguf")
    path = tmp_path / "found.json"
    words = ["--tool", tool, "--model", "tiny-chat", "--rounds", "1", "--decode-steps", "4"]
    words += ["--cases", "decode8", "--json", str(path)]
    assert main(["bench", "llama-cpp", *words]) == 0
    assert "500.0 ms, 16.0 tokens/s" in capsys.readouterr().out
    found = json.loads(path.read_text())
    assert (found["benchmark"], found["peer"]) == ("cpu-llama.cpp", "7 (abc)")
    (row,) = found["rows"]
    assert row["theirs_s"] == pytest.approx(0.5)
    assert row["ratio"] == pytest.approx(0.5 / row["ours_s"])


@pytest.mark.parametrize(
    "words", [["--tool", "/no/such/tool"], ["--cases", "decode7"], ["--threads", "0"]]
)
def test_mistakes_are_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "llama-cpp", *words]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
