"""Ranks that die, stand still or cannot load: everybody hears of it, and nothing is left behind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from processes import PATIENCE_S
from safetensors.torch import load_file, save_file
from service_process import KEYS, REPO, Server, long_stream

from chitu_like.config.files import expand_model_path

TINY_CHAT = expand_model_path("models.ckpt_dir", "package:tiny-chat")
STALL_TIMEOUT_S = 4.0
TOLD_WITHIN_S = STALL_TIMEOUT_S + 16.0  # on a busy machine; torchrun alone would take 30 s
LAYOUTS = {
    "tp 2": ("infer.tp_size=2",),
    "pp 2": ("infer.pp_size=2",),
}
HYBRID = {"tp 2 x pp 2": ("infer.tp_size=2", "infer.pp_size=2")}
PLACES = [*((layout, rank) for layout in LAYOUTS for rank in (0, 1)), ("tp 2 x pp 2", 3)]


@pytest.fixture
def own(tmp_path: Path) -> Iterator[list[Server]]:
    """Servers that a test may break."""
    servers: list[Server] = []
    yield servers
    for server in servers:
        server.close()


def start(own: list[Server], log_dir: Path, *keys: str, num_ranks: int = 2) -> Server:
    own.append(Server(log_dir, *keys, num_ranks=num_ranks))
    return own[-1]


def ranks_of(server: Server) -> list[psutil.Process]:
    """The processes of all ranks, in order."""
    own = [process for process in server.family() if "RANK" in process.environ()]
    own = [process for process in own if "chitu_like" in process.cmdline()]
    return sorted(own, key=lambda process: int(process.environ()["RANK"]))


def exit_codes(server: Server) -> dict[int, int]:
    """Rank -> exit code of those that did not end with 0, as torchrun tells."""
    said = "".join(server.output)
    ranks = [int(rank) for rank in re.findall(r"rank +: (\d+) \(local_rank", said)]
    codes = [int(code) for code in re.findall(r"exitcode +: (-?\d+)", said)]
    return dict(zip(ranks, codes, strict=True))


class Victim:
    """A service with three streams, one rank of which is hit by a signal."""

    def __init__(self, server: Server, log_dir: Path, rank: int, number: signal.Signals) -> None:
        self._server = server.wait_ready()
        self._log_dir = log_dir
        self._rank, self._number = rank, number
        self._ranks = ranks_of(server)
        self._streams = [long_stream(server) for _ in range(3)]
        for stream in self._streams:
            for _ in range(5):
                next(stream)

    def hit(self) -> None:
        """Send the signal, and read on to the end beside."""
        self._ends: dict[int, tuple[float, list[str]]] = {}
        indices = range(len(self._streams))
        self._readers = [threading.Thread(target=self._drain, args=(i,)) for i in indices]
        for reader in self._readers:
            reader.start()
        self._hit_s = time.monotonic()
        self._ranks[self._rank].send_signal(self._number)

    def _drain(self, index: int) -> None:
        frames = [line for line in self._streams[index] if line]
        self._ends[index] = (time.monotonic(), frames)

    def check_streams(self) -> None:
        for reader in self._readers:
            reader.join(PATIENCE_S)
        assert len(self._ends) == len(self._streams)
        for end_s, frames in self._ends.values():
            assert end_s - self._hit_s < TOLD_WITHIN_S
            assert '"error"' in "".join(frames[-2:])
        if self._number == signal.SIGSTOP:  # torchrun waits 30 s for it before it kills it
            with contextlib.suppress(psutil.NoSuchProcess):
                self._ranks[self._rank].kill()

    def check_end(self) -> None:
        assert self._server.end() != 0
        self._server.until_gone()
        if self._rank > 0:
            (log,) = self._log_dir.glob("*/rank0.log")
            assert re.search(rf"rank {self._rank} was lost at step \d+: ", log.read_text())
        codes = exit_codes(self._server)
        assert set(codes) == set(range(len(self._ranks)))
        assert 0 not in codes.values()


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "rank"), PLACES)
def test_a_rank_that_dies_or_stands_still_is_told_to_every_client(
    own: list[Server], tmp_path: Path, layout: str, rank: int
) -> None:
    """In two services side by side: most of it is waiting."""
    keys = (*(LAYOUTS | HYBRID)[layout], f"serve.stall_timeout_s={STALL_TIMEOUT_S:g}")
    folders = {number: tmp_path / number.name for number in (signal.SIGKILL, signal.SIGSTOP)}
    for folder in folders.values():
        folder.mkdir()
        start(own, folder, *keys, num_ranks=4 if layout in HYBRID else 2)
    victims = [
        Victim(server, folder, rank, number)
        for server, (number, folder) in zip(own, folders.items(), strict=True)
    ]
    for victim in victims:
        victim.hit()
    for victim in victims:
        victim.check_streams()
    for victim in victims:
        victim.check_end()


@pytest.mark.slow
def test_two_ranks_sleep_while_idle_then_answer_and_drain_at_sigterm_to_torchrun(
    own: list[Server], tmp_path: Path
) -> None:
    server = start(own, tmp_path, "infer.tp_size=2").wait_ready()

    def ask() -> str:
        body = {"prompt": "Once upon", "max_tokens": 5, "temperature": 0}
        answer = httpx.post(server.url + "/v1/completions", json=body, timeout=60.0)
        return str(answer.json()["choices"][0]["text"])

    def used_s() -> float:
        return sum(sum(process.cpu_times()[:2]) for process in ranks_of(server))

    first = ask()
    time.sleep(1.0)
    before = used_s()
    time.sleep(5.0)
    assert used_s() - before < 0.5  # 5 % of two ranks
    assert ask() == first

    lines = long_stream(server, max_tokens=60)
    next(lines)
    server.process.send_signal(signal.SIGTERM)
    rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    server.end()
    server.until_gone()
    names = ["http.log", "rank0.log", "rank1.log"]
    assert sorted(log.name for log in tmp_path.glob("*/*.log")) == names
    for log in tmp_path.glob("*/*.log"):
        assert " ERROR " not in log.read_text()


@pytest.mark.slow
def test_ranks_whose_torchrun_is_killed_finish_their_answers_and_end(
    own: list[Server], tmp_path: Path
) -> None:
    server = start(own, tmp_path, *LAYOUTS["tp 2"]).wait_ready()
    stream = long_stream(server, 200)
    next(stream)
    server.process.kill()
    server.process.wait()
    assert "data: [DONE]" in list(stream)
    server.until_gone()


def torchrun(num_ranks: int, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command on so many ranks, to its end."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc_per_node", str(num_ranks), *command),
        ],
        cwd=REPO,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        check=False,
    )


def serve(tmp_path: Path, *keys: str) -> subprocess.CompletedProcess[str]:
    """`torchrun ... -m chitu_like` of two ranks that will not come up."""
    return torchrun(2, "-m", "chitu_like", *keys, "serve.port=0", f"log_dir={tmp_path}")


@pytest.mark.slow
@pytest.mark.parametrize(("layer", "rank"), [(0, 0), (6, 1)])
def test_a_rank_that_lacks_a_tensor_names_it(tmp_path: Path, layer: int, rank: int) -> None:
    """Each stage looks for its own layers; the other one is still loading, or has loaded."""
    folder = tmp_path / "model"
    shutil.copytree(TINY_CHAT, folder)
    lost = f"model.layers.{layer}.mlp.down_proj.weight"
    (file,) = folder.glob("*.safetensors")
    save_file({n: t for n, t in load_file(file).items() if n != lost}, file)
    keys = ("models=auto", f"models.ckpt_dir={folder}", *KEYS[1:], "infer.pp_size=2")
    assert_said_of_rank(rank, serve(tmp_path, *keys), f"1 missing ({lost})")


@pytest.mark.slow
def test_a_file_that_no_rank_can_read_is_named_once(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(TINY_CHAT, folder)
    (file,) = folder.glob("*.safetensors")
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size // 2)
    keys = ("models=auto", f"models.ckpt_dir={folder}", *KEYS[1:], "infer.tp_size=2")
    assert_said_of_rank(0, serve(tmp_path, *keys), f"{file} is truncated or damaged")


@pytest.mark.slow
def test_a_worker_whose_file_is_cut_short_names_it(tmp_path: Path) -> None:
    """Of a preprocessed folder each rank reads its own file."""
    folder = tmp_path / "model"
    keys = ("dtype=float32", "infer.device=cpu", "infer.tp_size=2")
    subprocess.run(
        [sys.executable, "script/preprocess_and_save.py", "models=tiny-chat", *keys],
        cwd=REPO,
        env={**os.environ, "PYTHONPATH": str(REPO), "PREPROCESS_AND_SAVE_DIR": str(folder)},
        check=True,
        timeout=PATIENCE_S,
    )
    file = sorted(folder.glob("*.safetensors"))[1]
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size // 2)
    keys = ("models=auto", f"models.ckpt_dir={folder}", *keys)
    assert_said_of_rank(1, serve(tmp_path, *keys), file.name)


def assert_said_of_rank(rank: int, done: subprocess.CompletedProcess[str], says: str) -> None:
    """Rank 0 said it in one line, whichever rank it is about, and ended with 2."""
    assert done.returncode != 0
    (line,) = (s for s in done.stderr.splitlines() if s.startswith("chitu_like: "))
    assert says in line
    assert line.endswith("(rank 1)") == (rank == 1)
    if rank == 1:  # told to stop, it has nothing to say of its leader's end
        assert "which leads this instance" not in done.stderr
    assert re.search(r"rank +: 0 \(local_rank: 0\)\s+exitcode +: 2", done.stderr)
    assert f'File "{REPO}/chitu_like' not in done.stderr  # no trace of ours


@pytest.mark.slow
def test_a_mistake_is_said_once(tmp_path: Path) -> None:
    """What is said of which: test_launch.py."""
    done = serve(tmp_path, "models=tiny-chat", "infer.device=cpu", "infer.tp_size=3")
    assert done.returncode != 0
    (line,) = (s for s in done.stderr.splitlines() if s.startswith("chitu_like: "))
    assert "use 1, 2, 4 or 8" in line
    assert f'File "{REPO}/chitu_like' not in done.stderr  # no trace of ours


def run_program(num_ranks: int, what: str, *keys: str) -> subprocess.CompletedProcess[str]:
    """failing_program.py under torchrun."""
    small = ("models=tiny-chat", "infer.device=cpu", "infer.num_blocks=64")
    return torchrun(num_ranks, "test/end_to_end/failing_program.py", what, *small, *keys)


@pytest.mark.slow
def test_a_rank_that_cannot_meet_the_others_says_why_and_nobody_waits_for_it() -> None:
    started_s = time.monotonic()
    done = run_program(2, "meet", "infer.tp_size=2")
    assert done.returncode != 0
    assert time.monotonic() - started_s < 200.0  # they would wait for 300 s
    (said,) = (line for line in done.stderr.splitlines() if "this rank failed: " in line)
    assert "the 2 ranks of instance 0 did not meet: " in said
    assert "nowhere0" in said
    assert "in join" in done.stderr  # the trace
    assert "rank 1 was lost while loading" in done.stderr  # says the leader


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_computation_that_fails_on_a_worker_is_one_sentence_and_a_trace(layout: str) -> None:
    done = run_program(2, "break", *LAYOUTS[layout])
    assert done.returncode != 0
    said = json.loads(done.stdout)
    assert said["error"] == "rank 1 failed at step 5: ArithmeticError: two and two are five"
    assert "in failing" in done.stderr  # the trace, from the worker's log


@pytest.mark.slow
def test_ranks_that_were_idle_for_longer_than_a_collective_may_take_answer() -> None:
    done = run_program(4, "idle", "infer.tp_size=2", "infer.pp_size=2")
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout)["tokens"]
    assert first == second


@pytest.mark.slow
def test_a_program_that_ends_without_shutdown_leaves_no_rank_behind() -> None:
    done = run_program(4, "leave", "infer.tp_size=2", "infer.pp_size=2")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("lost") == 0
