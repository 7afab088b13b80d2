"""Supervisors with ranks that do nothing: who ends whom, when, and with which code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from processes import PATIENCE_S, until

from chitu_like.cluster.placement import Placement
from chitu_like.supervisor.head import HeadSupervisor
from chitu_like.supervisor.messages import Begin

pytestmark = pytest.mark.timeout(3 * PATIENCE_S)

REPO = Path(__file__).resolve().parents[2]
FAKE_RANK = Path(__file__).with_name("fake_rank.py")
FOLLOWER = """
import sys
from chitu_like.supervisor.follower import Follower
from chitu_like.supervisor import child
from chitu_like.supervisor.messages import Begin
child.NOTICE_S = 0.2  # a fake rank finds nothing out by itself
program = (sys.executable, *sys.argv[2:])
sys.exit(Follower(int(sys.argv[1]), silence_s=60.0, program=program).run(Begin("{}")))
"""


class FakeFrontEnd:
    """Drains at once: it lets the ranks stop, and says that it has ended."""

    secret = "engine-secret"
    folder = "/run/x"

    def __init__(self, run: Path) -> None:
        self._run = run
        self.engines: dict[int, str] = {}
        self.num_drains = 0

    def connect(self, instance: int, address: str) -> None:
        self.engines[instance] = address
        if len(self.engines) == 2:
            self.ready()

    def drain(self) -> None:
        self.num_drains += 1
        (self._run / "stop").write_text("stop")
        self.ended(0, "")

    def when_ended(
        self,
        call: Callable[[int, str], None],
        *,
        when_ready: Callable[[], None],
        when_lost: Callable[[int], None],
    ) -> None:
        self.ended, self.ready, self.lost = call, when_ready, when_lost


class Job:
    """Two instances of two ranks: the head runs here, its followers as processes."""

    def __init__(self, run: Path) -> None:
        self.run_dir = run
        self.front_end = FakeFrontEnd(run)
        self.ready = threading.Event()
        self.environ = {**os.environ, "PYTHONPATH": str(REPO)}
        self.followers = [
            subprocess.Popen(
                [sys.executable, "-c", FOLLOWER, str(rank), str(FAKE_RANK), str(run)],
                env={**self.environ, "RANK": str(rank)},
            )
            for rank in (1, 2, 3)
        ]

    def lead(self, scenario: Callable[[Job], None]) -> int:
        """Run the head while a thread plays the scenario; the head's code."""
        head = HeadSupervisor(
            Placement.uniform(num_instances=2, tp_size=2, layer_partition=[1]),
            self.front_end,
            "now",
            silence_s=60.0,
            when_ready=self.ready.set,
            program=(sys.executable, str(FAKE_RANK), str(self.run_dir)),
        )
        failures: list[BaseException] = []

        def play() -> None:
            try:
                scenario(self)
            except BaseException as error:
                failures.append(error)
                self.front_end.ended(1, "the scenario failed")

        player = threading.Thread(target=play, daemon=True)
        player.start()
        code = head.run(Begin("{}"))
        player.join(PATIENCE_S)
        assert failures == []
        return code

    def order(self, rank: int, what: str) -> None:
        (self.run_dir / str(rank)).write_text(what)

    def all_listen(self) -> None:
        for rank in range(4):
            self.order(rank, "listen")
        assert self.ready.wait(PATIENCE_S)

    def process(self, rank: int) -> psutil.Process:
        return psutil.Process(int((self.run_dir / f"pid-{rank}").read_text()))

    def codes(self) -> list[int]:
        return [follower.wait(PATIENCE_S) for follower in self.followers]

    def close(self) -> None:
        for follower in self.followers:
            follower.kill()
            follower.wait()


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    monkeypatch.setattr("chitu_like.supervisor.child.NOTICE_S", 0.2)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    job = Job(tmp_path)
    yield job
    job.close()
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_sigterm_drains_once_and_all_end_with_0(job: Job) -> None:
    def scenario(job: Job) -> None:
        job.all_listen()
        for follower in job.followers:
            follower.send_signal(signal.SIGTERM)  # torchrun signals all; the head alone drains
        time.sleep(0.3)
        assert all(follower.poll() is None for follower in job.followers)
        os.kill(os.getpid(), signal.SIGTERM)

    assert job.lead(scenario) == 0
    assert job.codes() == [0, 0, 0]
    assert job.front_end.num_drains == 1
    assert job.front_end.engines == {0: "ipc:///engine-0", 1: "ipc:///engine-1"}


def test_ranks_that_still_load_when_the_job_has_drained_did_not_fail(job: Job) -> None:
    def scenario(job: Job) -> None:
        for rank in (0, 1):
            job.order(rank, "listen")
        until(lambda: 0 in job.front_end.engines)
        job.front_end.ended(0, "")

    assert job.lead(scenario) == 0
    assert job.codes() == [0, 0, 0]


def test_a_users_mistake_while_loading_is_one_line_and_everybodys_code(
    job: Job, capfd: pytest.CaptureFixture[str]
) -> None:
    def scenario(job: Job) -> None:
        for rank in (0, 1):
            job.order(rank, "listen")
        job.order(3, "2")

    assert job.lead(scenario) == 2
    assert job.codes() == [2, 2, 2]
    assert capfd.readouterr().err == "chitu_like: rank 3 was told to\n"
    assert not job.ready.is_set()


def test_a_lost_rank_takes_its_instance_along_and_nobody_else(job: Job) -> None:
    def scenario(job: Job) -> None:
        job.all_listen()
        leader, worker = job.process(2), job.process(3)
        worker.kill()
        until(lambda: not leader.is_running())
        assert (job.run_dir / "dumped-2").exists()  # it could write its stacks first
        assert job.process(0).is_running()
        assert job.process(1).is_running()
        assert all(follower.poll() is None for follower in job.followers)
        job.front_end.drain()

    assert job.lead(scenario) == 0
    assert job.codes() == [0, 1, 1]


@pytest.mark.slow
def test_an_instance_that_the_front_end_gave_up_is_ended(job: Job) -> None:
    def scenario(job: Job) -> None:
        job.all_listen()
        leader, worker = job.process(0), job.process(1)
        leader.suspend()
        assert job.front_end.lost is not None
        job.front_end.lost(0)
        until(lambda: not leader.is_running() and not worker.is_running())
        assert job.process(2).is_running()
        job.front_end.drain()

    assert job.lead(scenario) == 1
    assert job.codes() == [1, 0, 0]


def test_a_dead_front_end_ends_the_job_with_1(job: Job) -> None:
    def scenario(job: Job) -> None:
        job.all_listen()
        job.front_end.ended(-9, "the front end ended with code -9")

    assert job.lead(scenario) == 1
    assert job.codes() == [1, 1, 1]
    assert not any(psutil.pid_exists(int(p.read_text())) for p in job.run_dir.glob("pid-*"))


def test_a_follower_that_dies_ends_the_job(job: Job) -> None:
    def scenario(job: Job) -> None:
        job.all_listen()
        job.followers[2].kill()  # the fake rank does not watch its supervisor
        job.process(3).kill()

    assert job.lead(scenario) == 1
    assert job.codes()[:2] == [1, 1]
    assert job.front_end.num_drains >= 1


def test_a_supervisor_loads_no_torch() -> None:
    code = (
        "import sys, chitu_like.launch, chitu_like.supervisor.rank; print('torch' in sys.modules)"
    )
    environ = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
