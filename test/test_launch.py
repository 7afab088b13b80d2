"""launch: what the ranks of torchrun say and do about the user's mistakes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist
from processes import PATIENCE_S, until_asleep

from chitu_like.core.ending import LAST_WORDS_S
from chitu_like.launch import import_beside, launch

REPO = Path(__file__).resolve().parents[1]


def of_two_ranks(rank: int) -> dict[str, str]:
    here = {"RANK": str(rank), "WORLD_SIZE": "2"}
    return here | {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}


def test_rank_0_says_in_one_line_that_the_ranks_are_too_many(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("rank 0 waited"))
    assert launch([], of_two_ranks(0)) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("chitu_like: torchrun started 2 ranks")
    assert "use --nproc_per_node 1" in err


def test_a_single_process_is_told_what_to_start(capfd: pytest.CaptureFixture[str]) -> None:
    assert launch(["infer.tp_size=2", "infer.pp_size=2"], {}) == 2
    assert capfd.readouterr().err == (
        "chitu_like: there is one rank but infer.tp_size=2, infer.pp_size=2 and deploy.replicas=1 "
        "need 4: use torchrun --nproc_per_node 4 -m chitu_like\n"
    )


def test_ranks_of_several_nodes_are_counted_together(capfd: pytest.CaptureFixture[str]) -> None:
    assert launch(["infer.tp_size=8"], of_two_ranks(0) | {"LOCAL_WORLD_SIZE": "1"}) == 2
    assert "as many nodes and ranks on each (--nproc_per_node) as make 8" in capfd.readouterr().err


@pytest.mark.parametrize("environ", [{}, of_two_ranks(0)], ids=["alone", "two ranks"])
@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (["infer.tp_size=3"], "tiny-chat: use 1, 2, 4 or 8"),
        (["infer.pp_size=50"], "tiny-chat: use "),
        (["infer.pp_size=2", "infer.pp_layer_partition=[1,2]"], "add up to 8"),
        (["infer.tp_size=2", "infer.memory_utilisation=1"], "infer.memory_utilization"),
    ],
)
def test_what_cannot_be_is_said_in_one_line_before_ranks_are_asked_for(
    keys: list[str], says: str, environ: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert launch(keys, environ) == 2
    said = capfd.readouterr().err
    assert said.startswith("chitu_like: ")
    assert said.count("\n") == 1
    assert says in said


def test_other_ranks_are_silent_and_do_not_end_before_rank_0_has_spoken(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    assert launch(["infer.nonsense=1"], of_two_ranks(1)) == 2
    assert capfd.readouterr() == ("", "")
    assert waited == [LAST_WORDS_S]


def test_a_mistake_of_another_node_is_said_by_its_first_rank_once_rank_0_had_time_to(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said_before: list[str] = []
    monkeypatch.setattr(time, "sleep", lambda seconds: said_before.append(capfd.readouterr().err))
    node = of_two_ranks(1) | {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    assert launch(["models=auto", "models.ckpt_dir=/no/such/folder"], node) == 2
    said = capfd.readouterr().err
    assert said_before == [""]
    assert said.startswith("chitu_like: rank 1: ")
    assert "/no/such/folder" in said
    assert said.count("\n") == 1


WAIT_FOR_NOBODY = """
import sys
from chitu_like import rank
from chitu_like.launch import import_beside, launch

find_address = rank.find_address

def waiting(*arguments):
    print("waiting", flush=True)
    return find_address(*arguments)

rank.find_address = waiting
sys.exit(launch(["infer.tp_size=2", "infer.device=cpu"]))
"""


@pytest.mark.slow
def test_ctrl_c_ends_a_rank_that_waits_for_a_leader_who_never_comes(tmp_path: Path) -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    dist.PrefixStore("chitu_like/none/0", store).set("secret", "s")
    master = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    with subprocess.Popen(
        [sys.executable, "-c", WAIT_FOR_NOBODY],
        env={**os.environ, **of_two_ranks(1), **master, "PYTHONPATH": str(REPO)},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    ) as rank:
        try:
            assert rank.stdout is not None
            assert rank.stdout.readline() == "waiting\n"
            until_asleep(rank.pid)
            rank.send_signal(signal.SIGINT)
            assert rank.wait(PATIENCE_S) == -signal.SIGINT  # it would wait for 300 s
        finally:
            rank.kill()


@pytest.mark.parametrize("words", [["chitu_like"], ["chitu_like.cli", "serve"]])
def test_help_is_shown_however_the_service_is_started(words: list[str]) -> None:
    module, *command = words
    done = subprocess.run(
        [sys.executable, "-m", module, *command, "--help"],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: chitu-like serve")
    assert "KEY=VALUE" in done.stdout


def test_a_module_that_fails_to_import_beside_says_why_it_failed_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "fails_on.py").write_text('raise OSError("libcudnn.so is missing")\n')
    importing = import_beside("fails_on")
    with pytest.raises(OSError, match=r"libcudnn\.so is missing"):
        importing.result(PATIENCE_S)
    (tmp_path / "imports_well.py").write_text("ANSWER = 1\n")
    assert import_beside("imports_well").result(PATIENCE_S) is sys.modules["imports_well"]
