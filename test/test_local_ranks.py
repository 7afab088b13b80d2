"""The ranks of one node: exit codes, signals, and what the operator reads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from processes import PATIENCE_S, until

from chitu_like import local_ranks
from chitu_like.cli import main, serve
from chitu_like.config.load import load_config
from chitu_like.core.errors import ConfigError
from chitu_like.local_ranks import check_devices

REPO = Path(__file__).resolve().parents[1]

RANK = """
import os, signal, sys, time
from pathlib import Path

rank, folder = int(os.environ["RANK"]), Path(sys.argv[2])
def note(word):
    with (folder / str(rank)).open("a") as file:
        file.write(word + " ")
def drain(number, frame):
    note("drain")
    if sys.argv[1] == "drain":
        sys.exit(0)
def stop(number, frame):
    note("stop")
    if sys.argv[1] == "stubborn":
        os._exit(130)
if sys.argv[1] != "starts":
    signal.signal(signal.SIGTERM, drain)
signal.signal(signal.SIGINT, stop)
note(os.environ["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"])
if sys.argv[1] == "mistake" and rank == 0:
    print("chitu_like: one line", file=sys.stderr)
    sys.exit(2)
if sys.argv[1] == "killed" and rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "done":
    sys.exit(0)
deadline = time.monotonic() + 60
while time.monotonic() < deadline:
    time.sleep(0.1)
    if sys.argv[1] in ("mistake", "killed") and "drain" in (folder / str(rank)).read_text():
        sys.exit(1)
sys.exit(5)
"""
START = """
import sys
from chitu_like.local_ranks import run_ranks
sys.exit(run_ranks(sys.argv[2:], num_ranks=2, drain_timeout_s=float(sys.argv[1])))
"""


class Ranks:
    """Two ranks that do as one word tells them."""

    def __init__(self, folder: Path, behaviour: str, drain_timeout_s: float = 20.0) -> None:
        script = folder / "rank.py"
        script.write_text(textwrap.dedent(RANK))
        self.folder, self.temporary = folder, folder / "temporary"
        self.temporary.mkdir()
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, str(drain_timeout_s), str(script), behaviour, folder],
            env={**os.environ, "PYTHONPATH": str(REPO), "TMPDIR": str(self.temporary)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def words(self, rank: int) -> list[str]:
        file = self.folder / str(rank)
        return file.read_text().split() if file.exists() else []

    def wait_for(self, word: str) -> None:
        until(
            lambda: (
                self.process.poll() is not None
                or all(word in self.words(rank) for rank in range(2))
            )
        )
        assert self.process.poll() is None, self.process.communicate()

    def end(self) -> tuple[int, str]:
        """Exit code and standard error, once it and all below it have ended and left nothing."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        _, error = self.process.communicate(timeout=PATIENCE_S)
        _, alive = psutil.wait_procs(below, timeout=PATIENCE_S)
        assert not alive
        assert not [*self.temporary.iterdir()]
        return self.process.returncode, error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("behaviour", "code", "said"),
    [
        ("done", 0, ""),
        ("mistake", 2, "chitu_like: one line\n"),
        ("killed", 1, "chitu_like: rank 1 was ended by SIGKILL\n"),
    ],
)
def test_the_exit_code_is_the_ranks_and_only_they_speak(
    tmp_path: Path, behaviour: str, code: int, said: str
) -> None:
    ranks = Ranks(tmp_path, behaviour)
    assert ranks.end() == (code, said)
    assert ranks.words(0)[0] == "30"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_drains_every_rank(tmp_path: Path, number: signal.Signals) -> None:
    ranks = Ranks(tmp_path, "drain")
    ranks.wait_for("30")
    ranks.process.send_signal(number)
    assert ranks.end() == (0, "")
    assert [ranks.words(rank) for rank in range(2)] == [["30", "drain"]] * 2


@pytest.mark.slow
def test_a_signal_while_ranks_start_is_no_failure(tmp_path: Path) -> None:
    ranks = Ranks(tmp_path, "starts")
    ranks.wait_for("30")
    ranks.process.send_signal(signal.SIGINT)
    assert ranks.end() == (0, "")


@pytest.mark.slow
def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    ranks = Ranks(tmp_path, "stubborn")
    ranks.wait_for("30")
    ranks.process.send_signal(signal.SIGINT)
    ranks.wait_for("drain")
    ranks.process.send_signal(signal.SIGINT)
    assert ranks.end() == (130, "")
    assert [ranks.words(rank) for rank in range(2)] == [["30", "drain", "stop"]] * 2


@pytest.mark.slow
def test_ranks_that_outlive_the_drain_are_killed(tmp_path: Path) -> None:
    ranks = Ranks(tmp_path, "deaf", drain_timeout_s=-9.0)  # a second in all
    ranks.wait_for("1")
    ranks.process.send_signal(signal.SIGTERM)
    code, error = ranks.end()
    assert code == 1
    assert error.splitlines() == [f"chitu_like: rank {n} was ended by SIGKILL" for n in range(2)]


def test_a_signal_before_any_rank_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # Earlier tests may have left this very process a child, such as multiprocessing's tracker.
    monkeypatch.setattr(local_ranks, "_children", list)
    with pytest.raises(local_ranks._NothingToDrain), local_ranks._Signals(10):
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_mistake_is_told_once_and_without_torch() -> None:
    words = ["infer.tp_size=2", "infer.pp_size=two"]
    code = f"import sys; from chitu_like.cli import main; c = main(['serve', *{words}]); "
    code += "print('torch' in sys.modules); sys.exit(c)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "False\n")
    (line,) = done.stderr.splitlines()
    assert "infer.pp_size" in line


def test_too_few_gpus_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    config = load_config([])
    asked = replace(config, infer=replace(config.infer, tp_size=2, device="cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="need 2 GPUs, this node has 1: use fewer, or more nodes"):
        check_devices(asked)
    check_devices(replace(asked, infer=replace(asked.infer, device="cpu")))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_devices(asked)


def test_serve_hands_many_ranks_to_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config([])
    config = replace(config, infer=replace(config.infer, tp_size=2, pp_size=2, device="cpu"))
    handed: list[object] = []

    def run(command: list[str], **options: object) -> int:
        handed.extend((command, options))
        return 7

    monkeypatch.setattr(serve, "load_config", lambda overrides: config)
    monkeypatch.setattr(serve, "run_ranks", run)
    assert main(["serve", "serve.port=0"]) == 7
    options = {"num_ranks": 4, "drain_timeout_s": config.serve.drain_timeout_s}
    assert handed == [["-m", "chitu_like", "serve.port=0"], options]
