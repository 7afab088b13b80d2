from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from chitu_like import __version__
from chitu_like.cli import main
from chitu_like.cli.command_line import run_reporting
from chitu_like.cli.entry import COMMANDS
from chitu_like.core.errors import CapacityError

REPO = Path(__file__).resolve().parents[2]
BENCHMARKS = (
    "serving",
    "offline",
    "ops",
    "idle",
    "startup",
    "simulator",
    "cpu-transformers",
    "llama-cpp",
)


def one_line(text: str) -> str:
    (line,) = text.strip().splitlines()
    return line


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_the_overview_names_every_command(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert all(f"  {command.name} " in printed for command in COMMANDS)
    assert "examples:" in printed


@pytest.mark.parametrize(
    "words",
    [[command.name] for command in COMMANDS] + [["bench", name] for name in BENCHMARKS],
    ids=" ".join,
)
def test_every_help_shows_usage_and_examples(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--help"]) == 0
    printed = capsys.readouterr().out
    command = f"chitu-like {' '.join(words)}"
    assert printed.startswith(f"usage: {command}")
    assert printed.count(command) >= 2
    assert "examples:" in printed


@pytest.mark.slow
@pytest.mark.parametrize("script", ["serving", "offline", "cpu_transformers"])
def test_the_scripts_are_the_commands(script: str) -> None:
    done = subprocess.run(
        [sys.executable, f"benchmarks/benchmark_{script}.py", "--help"],
        cwd=REPO,
        env={"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"usage: benchmark_{script}.py" in done.stdout


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"chitu-like {__version__}\n"


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["sevre"], "did you mean serve?"),
        (["xyzzy"], "use one of serve, chat"),
        (["bench", "ofline"], "did you mean offline?"),
        (["chat", "--tempreature", "1"], "--tempreature"),
        (["chat", "--temp", "1"], "--temp"),
        (["explain", "infer.max_rqs"], "did you mean infer.max_reqs?"),
        (["explain", "models=auto"], "which key"),
        (["doctor", "infer.max_rqs=3"], "did you mean infer.max_reqs?"),
        (["doctor", "infer.max_reqs"], "KEY=VALUE"),
        (["chat", "--url", "http://x", "infer.seed=1"], "infer.seed=1"),
        (["chat", "--model", "x"], "--url"),
        (["generate", "--input", "x"], "--output"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    words: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    printed = capsys.readouterr()
    assert hint in one_line(printed.err)
    assert printed.out == ""


def test_a_message_of_many_lines_is_made_one(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> int:
        raise CapacityError("too\n  much")

    assert run_reporting("prog", fail) == 2
    assert capsys.readouterr().err == "prog: too much\n"


def test_ctrl_c_is_exit_code_130() -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    assert run_reporting("prog", interrupted) == 130


def test_anything_else_shows_its_trace() -> None:
    def broken() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_reporting("prog", broken)


def test_a_reader_that_leaves_is_no_trace() -> None:
    code = "import sys; from chitu_like.cli import main; sys.exit(main(['explain']))"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=REPO,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()  # as `| head` does when it has seen enough
    assert process.stderr.read() == ""
    assert process.wait(60) == 1


def test_serve_hands_its_keys_to_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    from chitu_like.cli import serve

    handed: list[Sequence[str]] = []

    def launch(overrides: Sequence[str]) -> int:
        handed.append(overrides)
        return 7

    monkeypatch.setattr(serve, "launch", launch)
    assert main(["serve", "serve.port=0", "infer.max_reqs=3"]) == 7
    assert handed == [["serve.port=0", "infer.max_reqs=3"]]


def test_explain_lists_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain"]) == 0
    assert "infer.max_reqs " in capsys.readouterr().out


def test_explain_says_meaning_default_and_origin(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "infer.max_reqs", "infer.max_reqs=3", "serve.port"]) == 0
    printed = capsys.readouterr().out
    assert "infer.max_reqs: " in printed
    assert "default: auto" in printed
    assert "3 (command line: infer.max_reqs=3)" in printed
    assert "serve.port: " in printed


def test_help_comes_without_torch() -> None:
    code = (
        "import sys; from chitu_like.cli import main; "
        "[main([name, '--help']) for name in ('chat', 'generate', 'doctor', 'explain', 'bench')]; "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "False"
