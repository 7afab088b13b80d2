"""The leader's end of the front end: whoever goes first, and whenever, nothing stays behind."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from processes import PATIENCE_S, until

from chitu_like.config.load import load_config
from chitu_like.front_end_process import FrontEndProcess
from chitu_like.model_files import read_model_files

REPO = Path(__file__).resolve().parents[1]
KEYS = ("models=tiny-chat", "serve.port=0", "serve.admin_api_key=secret")


@pytest.fixture
def front_end(tmp_path: Path) -> Iterator[FrontEndProcess]:
    config = load_config([*KEYS, f"log_dir={tmp_path}"])
    with FrontEndProcess(config, read_model_files(config), "test") as front_end:
        yield front_end


@pytest.fixture
def ends(front_end: FrontEndProcess) -> queue.Queue[tuple[int, str]]:
    """Filled when the front end is gone."""
    ends: queue.Queue[tuple[int, str]] = queue.Queue()
    front_end.when_ended(lambda code, reason: ends.put((code, reason)))
    return ends


def folder_of(front_end: FrontEndProcess) -> Path:
    return Path(front_end.engine_address.removeprefix("ipc://")).parent


def process_of(front_end: FrontEndProcess) -> psutil.Process:
    children = psutil.Process().children()
    return next(child for child in children if "chitu_like.server" in child.cmdline())


def test_end_leaves_no_process_and_no_folder(front_end: FrontEndProcess) -> None:
    process, folder = process_of(front_end), folder_of(front_end)
    assert folder.is_dir()
    assert front_end.end() == 0
    assert not process.is_running()
    assert not folder.exists()


@pytest.mark.parametrize("is_draining", [False, True])
def test_a_killed_front_end_is_noticed_also_while_it_drains(
    front_end: FrontEndProcess, ends: queue.Queue[tuple[int, str]], is_draining: bool
) -> None:
    process = process_of(front_end)
    process.suspend()
    if is_draining:
        front_end.drain()
    process.kill()
    code, reason = ends.get(timeout=PATIENCE_S)
    assert code == -signal.SIGKILL
    assert "-9" in reason
    assert not folder_of(front_end).exists()


@pytest.mark.slow
def test_a_drain_while_the_model_loads_ends_the_leader_too(
    front_end: FrontEndProcess, ends: queue.Queue[tuple[int, str]]
) -> None:
    """The engine is not there to be told, and would wait for a front end for ever."""
    answer = httpx.post(
        f"{front_end.url}/admin/drain", headers={"Authorization": "Bearer secret"}, timeout=60.0
    )
    assert answer.status_code == 200, answer.text
    assert ends.get(timeout=PATIENCE_S)[0] == 0


def test_a_signal_behind_the_end_is_no_error(front_end: FrontEndProcess) -> None:
    front_end.end()
    front_end.drain()


def test_a_killed_leader_leaves_no_folder(tmp_path: Path) -> None:
    leader = subprocess.Popen(
        [sys.executable, "-c", LEADER, *KEYS, f"log_dir={tmp_path}"],
        env={**os.environ, "PYTHONPATH": str(REPO)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert leader.stdout is not None
    folder = Path(leader.stdout.readline().strip().removeprefix("ipc://")).parent
    assert folder.is_dir()
    leader.kill()
    leader.wait()
    leader.stdout.close()
    until(lambda: not folder.exists())


LEADER = """
import sys, time
from chitu_like.config.load import load_config
from chitu_like.front_end_process import FrontEndProcess
from chitu_like.model_files import read_model_files
config = load_config(sys.argv[1:])
front_end = FrontEndProcess(config, read_model_files(config), "test")
print(front_end.engine_address, flush=True)
time.sleep(60)
"""
