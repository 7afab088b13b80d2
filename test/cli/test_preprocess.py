"""`chitu-like preprocess` and script/preprocess_and_save.py: one process, or several under torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from chitu_like import LLM, SamplingParams
from chitu_like.cli import main
from chitu_like.config.load import load_config
from chitu_like.core.errors import ConfigError
from chitu_like.core.manifest import find_manifest
from chitu_like.model_files import read_model_files

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _no_folder_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREPROCESS_AND_SAVE_DIR", raising=False)


def run_python(
    *words: str, processes: int = 1, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a script or module as users do, under torchrun where there are several processes."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    named = {} if folder is None else {"PREPROCESS_AND_SAVE_DIR": str(folder)}
    return subprocess.run(
        [sys.executable, *(torchrun if processes > 1 else []), *words],
        cwd=REPO,
        env={**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", **named},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def run_script(*words: str, folder: Path, processes: int = 1) -> subprocess.CompletedProcess[str]:
    script = "script/preprocess_and_save.py"
    return run_python(script, *words, processes=processes, folder=folder)


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["preprocess", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_service_needs_nothing_but_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last line that is printed serves, with the very tokens of the original."""
    assert main(["preprocess", f"out={tmp_path}", "models=tiny-chat"]) == 0
    printed = capsys.readouterr().out
    assert "rank-0-0.safetensors" in printed
    keys = printed.splitlines()[-1].partition("to serve it: ")[2].split()
    assert f"models.ckpt_dir={tmp_path}" in keys
    params = SamplingParams(temperature=0, max_tokens=16)
    answers = []
    for model in (["models=tiny-chat"], keys):
        small = ("infer.num_blocks=64", "infer.max_reqs=2", "infer.device=cpu")
        with LLM(*model, *small, progress=False) as llm:
            outputs = llm.generate(["Once upon a time", [5, 6, 7]], params)
            answers.append([(o.outputs[0].token_ids, o.outputs[0].text) for o in outputs])
    assert answers[0] == answers[1]
    assert len(answers[0][0][0]) == 16


def test_the_doctor_knows_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preprocess", f"out={tmp_path}", "models=tiny-chat"]) == 0
    words = ["models=auto", f"models.ckpt_dir={tmp_path}", "serve.port=0", "infer.max_reqs=1"]
    capsys.readouterr()
    assert main(["doctor", *words]) == 0
    printed = capsys.readouterr().out
    assert "1 rank file(s)" in printed
    assert "preprocessed for infer.tp_size=1 infer.pp_size=1" in printed
    path = tmp_path / "rank-0-0.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    assert main(["doctor", *words]) == 2
    assert "rank-0-0.safetensors has 1000 bytes" in capsys.readouterr().err


def test_a_folder_that_is_whole_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["preprocess", f"out={tmp_path}", "models=tiny-chat"]
    assert main(words) == 0
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert main(words) == 0
    assert "is whole already" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    assert "overwrite=true" in refusal(capsys, *words[1:], "dtype=float32")
    assert main([*words, "dtype=float32", "overwrite=True"]) == 0
    manifest = find_manifest(tmp_path)
    assert manifest is not None
    assert manifest.dtype == "float32"


def test_mistakes_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "add out=DIR, or set PREPROCESS_AND_SAVE_DIR=DIR" in refusal(capsys)
    assert "overwrite=maybe" in refusal(capsys, f"out={tmp_path}", "overwrite=maybe")
    assert "infer.tp_size" in refusal(capsys, f"out={tmp_path}", "infer.tp_sise=2")
    assert "needs a folder" in refusal(capsys, f"out={tmp_path}", "models=auto")
    (tmp_path / "thesis.tex").write_text("years of work")
    assert "thesis.tex is there" in refusal(capsys, f"out={tmp_path}", "overwrite=true")
    monkeypatch.setenv("PREPROCESS_AND_SAVE_DIR", str(tmp_path))
    assert "contradicts PREPROCESS_AND_SAVE_DIR" in refusal(capsys, "out=elsewhere")


def test_a_file_in_the_way_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert "cannot be written" in refusal(capsys, f"out={out}", "models=tiny-chat")


def test_only_process_0_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chitu_like.cli.preprocess.LAST_WORDS_S", 0.0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert main(["preprocess", f"out={tmp_path}", "infer.tp_size=0"]) == 2
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("RANK", "0")
    assert main(["preprocess", f"out={tmp_path}", "infer.tp_size=0"]) == 2
    assert "infer.tp_size=0" in capsys.readouterr().err


ANSWER = """
import sys
from chitu_like import LLM, SamplingParams

llm = LLM(*sys.argv[1:], "infer.device=cpu", "infer.num_blocks=64", progress=False)
params = SamplingParams(temperature=0, max_tokens=12)
outputs = llm.generate(["Once upon a time", [5, 6, 7]], params, progress=False)
llm.shutdown()
print([output.outputs[0].token_ids for output in outputs])
"""


@pytest.mark.slow
def test_ranks_under_torchrun_answer_from_their_own_files(tmp_path: Path) -> None:
    """Written by one process, served by two: the tokens of one rank that reads the original."""
    folder, program = tmp_path / "out", tmp_path / "answer.py"
    program.write_text(ANSWER)
    assert main(["preprocess", f"out={folder}", "dtype=float32", "infer.tp_size=2"]) == 0
    keys = [f"models.{key}={folder}" for key in ("ckpt_dir", "tokenizer_path")]
    keys += ["models=auto", "skip_preprocess=True", "infer.tp_size=2"]
    whole = run_python(str(program), "models=tiny-chat", "dtype=float32")
    ranks = run_python(str(program), *keys, processes=2)
    assert (whole.returncode, ranks.returncode) == (0, 0), ranks.stderr
    assert whole.stdout.startswith("[[")
    assert ranks.stdout == whole.stdout
    wrong = run_python("-m", "chitu_like", *keys, "infer.pp_size=2", processes=4)
    (line,) = [line for line in wrong.stderr.splitlines() if line.startswith("chitu_like: ")]
    assert "was written for infer.tp_size=2 infer.pp_size=1, not for infer.tp_size=2 infer" in line
    assert wrong.returncode == 1  # torchrun's own


@pytest.mark.slow
def test_two_processes_of_torchrun_write_the_files_of_four_ranks(tmp_path: Path) -> None:
    keys = ("models=tiny-chat", "infer.tp_size=2", "infer.pp_size=2")
    done = run_script(*keys, folder=tmp_path, processes=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(".safetensors") == 4  # one table, by the last of them
    manifest = find_manifest(tmp_path)
    assert manifest is not None
    assert (manifest.tp_size, manifest.layer_partition) == (2, (5, 3))
    assert {path.name for path in tmp_path.glob("*.safetensors")} == {
        f"rank-{pp}-{tp}.safetensors" for pp in (0, 1) for tp in (0, 1)
    }
    folder_keys = ("models=auto", f"models.ckpt_dir={tmp_path}", "skip_preprocess=True")
    read_model_files(load_config([*folder_keys, *keys[1:]]))  # the keys that wrote it serve it
    with pytest.raises(ConfigError, match=r"was written for infer\.tp_size=2 infer\.pp_size=2"):
        LLM("models=auto", f"models.ckpt_dir={tmp_path}", "infer.device=cpu", progress=False)


@pytest.mark.slow
def test_the_script_is_the_command(tmp_path: Path) -> None:
    helped = run_script("--help", folder=tmp_path)
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "PREPROCESS_AND_SAVE_DIR=DIR torchrun" in helped.stdout
    done = run_script("models=tiny-chat", folder=tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert find_manifest(tmp_path / "out") is not None
    wrong = run_script("models=auto", folder=tmp_path / "out")
    assert wrong.returncode == 2
    assert len(wrong.stderr.splitlines()) == 1
