"""The *_multi_node.sh scripts, with an ssh, a docker and an srun of our own on PATH."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from processes import PATIENCE_S, until

REPO = Path(__file__).resolve().parents[2]
SCRIPTS = REPO / "script"
PROGRAMS = Path(__file__).with_name("programs")
AWKWARD = [
    "a b",
    "new\nline",
    "$HOME `id` $(id)",
    "it's",
    'say "x"',
    "*",
    "a;b&c|d>e",
    "",
    "-x",
    "é\\",
]


@dataclass
class Launch:
    """A script that runs, and what the programs it called have noted."""

    process: subprocess.Popen[str]
    records: Path
    pids: set[int] = field(default_factory=set)

    def torchruns(self) -> dict[str, dict[str, Any]]:
        """What the torchrun of the head and of the other node noted, and who they were."""
        found = {}
        for file in self.records.glob("torchrun.*.*[0-9]"):
            note = json.loads(file.read_text())
            found[file.name.split(".")[1]] = note
            note["stops"] = Path(note["heard"]).read_text().split().count("stop")
            self.pids |= {int(file.suffix[1:]), note["rank"]}
        return found

    def calls(self, program: str) -> list[list[str]]:
        """Words of each call of a program, without the NUL at the end."""
        files = self.records.glob(f"{program}.*")
        return sorted(file.read_text().split("\0")[:-1] for file in files)

    def wait_running(self, num_nodes: int = 2) -> Launch:
        until(lambda: len(self.torchruns()) == num_nodes)
        return self

    def end(self) -> tuple[int, str, str]:
        """Exit code, standard output and error; nothing that ran may be left."""
        out, err = self.process.communicate(timeout=PATIENCE_S)
        self.torchruns()
        until(lambda: not any(is_alive(pid) for pid in self.pids))
        return self.process.returncode, out, err


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Cluster:
    """Start scripts where ssh, docker, srun and torchrun are the programs beside this file."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.programs = root / "programs"
        shutil.copytree(PROGRAMS, self.programs)
        (self.programs / "container" / "bin").mkdir()
        (self.programs / "container" / "bin" / "torchrun").symlink_to(self.programs / "torchrun")
        self.folder = root / "a folder"
        self.folder.mkdir()
        self.launches: list[Launch] = []

    def start(self, script: str, *words: str, **environ: str) -> Launch:
        records = self.root / "records"
        records.mkdir(exist_ok=True)
        process = subprocess.Popen(
            [SCRIPTS / script, *words],
            cwd=self.folder,
            env={
                "HOME": str(self.root),
                "PATH": f"{self.programs}:/usr/bin:/bin",
                "CHITU_LIKE_FORWARD": "TORCHRUN_DOES FORWARDED_*",
                **environ,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.launches.append(Launch(process, records))
        return self.launches[-1]

    def close(self) -> None:
        for process in psutil.process_iter(["cmdline"]):
            if any(str(self.root) in word for word in process.info["cmdline"] or ()):
                process.kill()
        for launch in self.launches:
            launch.process.kill()
            launch.process.communicate(timeout=PATIENCE_S)


@pytest.fixture
def cluster(tmp_path: Path) -> object:
    cluster = Cluster(tmp_path)
    yield cluster
    cluster.close()


def option(note: dict[str, Any], name: str) -> str:
    words: list[str] = note["words"]
    return words[words.index(name) + 1]


def test_ssh_runs_one_torchrun_on_each_host(cluster: Cluster) -> None:
    launch = cluster.start("ssh_multi_node.sh", "localhost,127.0.0.2", "8", "-m", "x", *AWKWARD)
    code, out, err = launch.end()
    assert code == 0, err
    nodes = launch.torchruns()
    endpoint = option(nodes["head"], "--rdzv_endpoint")
    job = option(nodes["head"], "--rdzv_id")
    assert endpoint.startswith("127.0.0.1:")
    assert 22000 <= int(endpoint.partition(":")[2]) < 32000
    for node, is_host, name in (("head", 1, "127.0.0.1"), ("other", 0, "node-00001.127.0.0.1")):
        assert nodes[node]["words"] == [
            *["--nnodes", "2", "--nproc_per_node", "8"],
            *["--rdzv_backend", "c10d", "--rdzv_endpoint", endpoint, "--rdzv_id", job],
            *["--rdzv_conf", f"is_host={is_host},read_timeout=300", "--local-addr", name],
            *["-m", "x", *AWKWARD],
        ]
        assert nodes[node]["cwd"] == str(cluster.folder)
    # Torch gives rank 0 to the smallest of these texts: it must be the head's.
    assert option(nodes["head"], "--local-addr") < option(nodes["other"], "--local-addr")
    assert sorted(line for line in out.splitlines() if "login" not in line) == [
        "[127.0.0.2] to stdout",
        "[localhost] to stdout",
    ]
    assert sorted(err.splitlines()) == ["[127.0.0.2] to stderr", "[localhost] to stderr"]


def test_nothing_but_the_host_stands_on_the_command_line_of_ssh(cluster: Cluster) -> None:
    launch = cluster.start("ssh_multi_node.sh", "localhost,me@localhost", "1", "x.py", "k=v")
    assert launch.end()[0] == 0
    options = ["ssh", "-T", "-o", "BatchMode=yes", "-o", "ServerAliveInterval=15"]
    called = [[*options, host, "bash -s"] for host in ("localhost", "localhost", "me@localhost")]
    assert launch.calls("ssh") == called


def test_docker_runs_in_the_container_with_its_own_programs(cluster: Cluster) -> None:
    inside = str(cluster.root)
    launch = cluster.start(
        *["ssh_docker_multi_node.sh", "box", inside, "localhost,127.0.0.2", "2", "-m", "x"],
        *AWKWARD,
        NCCL_DEBUG="INFO",
        PYTHONPATH="/only/outside",
    )
    code, _, err = launch.end()
    assert code == 0, err
    assert launch.calls("docker") == [["docker", "exec", "-i", "box", "bash", "--login", "-s"]] * 3
    assert {words[-1] for words in launch.calls("ssh")} == {"docker exec -i box bash --login -s"}
    for note in launch.torchruns().values():
        assert note["words"][-len(AWKWARD) - 2 :] == ["-m", "x", *AWKWARD]
        assert note["cwd"] == inside
        assert note["env"]["NCCL_DEBUG"] == "INFO"
        assert "PYTHONPATH" not in note["env"]
        assert str(cluster.programs) + ":" not in note["env"]["PATH"]


def test_srun_runs_one_task_on_each_node(cluster: Cluster) -> None:
    launch = cluster.start(
        *["srun_multi_node.sh", "2", "4", "--partition", "gpu", "--", "-m", "x", *AWKWARD],
        USER="me",
        CUDA_VISIBLE_DEVICES="7",
        HIDDEN="stays here",
    )
    code, out, err = launch.end()
    assert code == 0, err
    assert launch.calls("srun") == [
        [
            *["srun", "--gpus-per-task", "4", "--job-name", "me-chitu-like"],
            *["--cpus-per-task", "16", "--partition", "gpu"],
            *["--nodes", "2", "--ntasks", "2", "--ntasks-per-node", "1", "--kill-on-bad-exit=1"],
            *["--export=HOME,USER,LOGNAME,SHELL,LANG,PATH", "bash", "-s"],
        ]
    ]
    for node, is_host in (("head", 1), ("other", 0)):
        note = launch.torchruns()[node]
        assert note["words"][:4] == ["--nnodes", "2", "--nproc_per_node", "4"]
        assert note["words"][-len(AWKWARD) - 2 :] == ["-m", "x", *AWKWARD]
        assert option(note, "--rdzv_conf") == f"is_host={is_host},read_timeout=300"
        assert option(note, "--rdzv_endpoint") == f"localhost1:{22000 + (4711 * 7 + 2) % 10000}"
        assert option(note, "--rdzv_id") == "slurm-4711.2"
        assert not {"CUDA_VISIBLE_DEVICES", "HIDDEN"} & set(note["env"])
    assert sorted(out.splitlines()) == ["[n01] to stdout", "[n02] to stdout"]


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu[03-05,9]", "gpu03"),
        ("a1,b[2-3]", "a1"),
        ("rack1-n[7,9]-ib,x", "rack1-n7-ib"),
        ("one", "one"),
    ],
)
def test_the_head_is_the_first_of_slurms_nodes(nodes: str, first: str) -> None:
    code = f". {SCRIPTS}/lib/node.sh; place_by_slurm; echo $endpoint"
    environ = {"SLURM_STEP_NODELIST": nodes, "SLURM_JOB_ID": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["bash", "-c", code], env=environ, capture_output=True, text=True)
    assert done.stdout == f"{first}:22007\n"


def test_srun_asks_for_no_gpu_where_ranks_need_none(cluster: Cluster) -> None:
    launch = cluster.start("srun_multi_node.sh", "1", "2", "-m", "x", "infer.device=cpu", "--")
    assert launch.end()[0] == 0
    (words,) = launch.calls("srun")
    assert "--gpus-per-task" not in words
    assert launch.torchruns()["head"]["words"][-4:] == ["-m", "x", "infer.device=cpu", "--"]


def test_the_environment_goes_by_a_list_and_secrets_are_never_visible(cluster: Cluster) -> None:
    secret = "sk-\"quoted\" $HOME 'and' a\nline"
    listed = {
        "CHITU_LIKE_API_KEYS": secret,
        "CONFIG_NAME": "my config.yaml",
        "PREPROCESS_AND_SAVE_DIR": "/out",
        "NCCL_SOCKET_IFNAME": "eth1",
        "GLOO_SOCKET_IFNAME": "eth1",
        "CUDA_VISIBLE_DEVICES": "0,1",
        "HF_TOKEN": "hf",
        "TORCH_LOGS": "x",
        "PYTHONPATH": "/p",
        "VIRTUAL_ENV": "/v e",
        "FORWARDED_TOO": "yes",
    }
    launch = cluster.start(
        "ssh_multi_node.sh", "localhost,127.0.0.2", "1", "x.py", AWS_SECRET="no", **listed
    )
    assert launch.end()[0] == 0
    for note in launch.torchruns().values():
        assert {name: note["env"][name] for name in listed} == listed
        assert note["env"]["PATH"].startswith(f"/v e/bin:{cluster.programs}:")
        assert "AWS_SECRET" not in note["env"]
        assert note["env"]["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "35"
        assert note["visible"] == []


@pytest.mark.parametrize(
    ("words", "timeout_s"),
    [
        ([], "35"),
        (["serve.drain_timeout_s=60"], "70"),
        (["serve.drain_timeout_s=60", "serve.drain_timeout_s=1.5"], "12"),
    ],
)
def test_torchrun_outwaits_the_drain(words: list[str], timeout_s: str) -> None:
    code = f'. {SCRIPTS}/lib/nodes.sh; shutdown_timeout_s "$@"'
    command = ["bash", "-c", code, "-", "-m", "chitu_like", *words]
    assert subprocess.run(command, capture_output=True, text=True).stdout == f"{timeout_s}\n"


def test_two_jobs_on_one_head_do_not_meet(cluster: Cluster) -> None:
    first = cluster.start("ssh_multi_node.sh", "localhost", "1", "x.py")
    second = cluster.start("ssh_multi_node.sh", "localhost", "1", "x.py")
    assert (first.end()[0], second.end()[0]) == (0, 0)
    files = list(first.records.glob("torchrun.*"))
    notes = [json.loads(file.read_text()) for file in files]
    assert len({option(note, "--rdzv_endpoint") for note in notes}) == 2
    assert len({option(note, "--rdzv_id") for note in notes}) == 2


def test_ssh_knows_a_host_by_another_name_than_the_nodes(cluster: Cluster) -> None:
    launch = cluster.start("ssh_multi_node.sh", "me@alias,localhost", "1", "x.py")
    assert launch.end()[0] == 0
    # 127.0.0.9 is what ssh -G says of the alias; the head is reached from it through loopback.
    assert {words[-2] for words in launch.calls("ssh")} == {"me@alias", "localhost"}
    assert option(launch.torchruns()["other"], "--local-addr") == "node-00001.127.0.0.1"


@pytest.mark.slow
@pytest.mark.parametrize("failing", ["head", "other"])
def test_a_node_that_fails_ends_the_others_and_its_code_comes_back(
    cluster: Cluster, failing: str
) -> None:
    launch = cluster.start(
        *("ssh_multi_node.sh", "localhost,127.0.0.2", "1", "x.py"), TORCHRUN_DOES=f"fail {failing}"
    )
    code, _, err = launch.end()
    assert code == 3
    host = "localhost" if failing == "head" else "127.0.0.2"
    assert f"==> {host} ended with code 3: ending the job" in err
    (survivor,) = {"head", "other"} - {failing}
    assert launch.torchruns()[survivor]["stops"] == 1


@pytest.mark.slow
def test_a_host_that_cannot_be_reached_ends_the_job(cluster: Cluster) -> None:
    words = ("localhost,unreachable", "1", "x.py")
    launch = cluster.start("ssh_multi_node.sh", *words, TORCHRUN_DOES="drain")
    code, _, err = launch.end()
    assert code == 255
    assert "No route to host" in err
    assert "unreachable ended with code 255 (ssh could not connect" in err
    first = cluster.start("ssh_multi_node.sh", "unreachable,localhost", "1", "x.py")
    code, _, err = first.end()
    assert code == 1
    assert "unreachable, the first node, cannot be used" in err


@pytest.mark.parametrize("script", ["ssh", "srun"])
@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_signal_has_every_rank_drain_once(
    cluster: Cluster, script: str, number: signal.Signals
) -> None:
    nodes = "localhost,127.0.0.2" if script == "ssh" else "2"
    launch = cluster.start(f"{script}_multi_node.sh", nodes, "1", "x.py", TORCHRUN_DOES="drain")
    launch.wait_running()
    os.killpg(launch.process.pid, number)  # as a terminal does: to ssh and srun as well
    assert launch.end()[0] == 0
    assert [note["stops"] for note in launch.torchruns().values()] == [1, 1]


def test_a_second_ctrl_c_kills_what_does_not_stop(cluster: Cluster) -> None:
    launch = cluster.start(
        *("ssh_multi_node.sh", "localhost,127.0.0.2", "1", "x.py"), TORCHRUN_DOES="ignore"
    )
    launch.wait_running()
    launch.process.send_signal(signal.SIGINT)
    until(lambda: all(note["stops"] == 1 for note in launch.torchruns().values()))
    launch.process.send_signal(signal.SIGINT)
    started_s = time.monotonic()
    assert launch.end()[0] == 130
    assert time.monotonic() - started_s < 30.0  # torchrun has 35 s to stop by itself


@pytest.mark.parametrize("does", ["drain", "ignore"])
def test_no_node_outlives_its_launcher(cluster: Cluster, does: str) -> None:
    launch = cluster.start(
        *("ssh_multi_node.sh", "localhost,127.0.0.2", "1", "x.py"), TORCHRUN_DOES=does
    )
    launch.wait_running()
    launch.process.kill()
    launch.end()


@pytest.mark.slow
def test_a_node_that_hears_nothing_ends(cluster: Cluster) -> None:
    """A connection that hangs: standard input neither ends nor says anything."""
    (cluster.root / "records").mkdir()
    code = f"""
        . {SCRIPTS}/lib/nodes.sh; WAITS_FOR_LAUNCHER_S=1 shutdown_s=35 node_index=0 node_name=n num_nodes=1
        ranks_per_node=1 endpoint=h:1 job=j peers=(127.0.0.1) folder=/ command=(x)
        caller_path={shlex.quote(str(cluster.programs))}
        TORCHRUN_DOES=ignore; export TORCHRUN_DOES; CHITU_LIKE_FORWARD=TORCHRUN_DOES
        {{ payload run_with_name "${{JOB_VARIABLES[@]}}"; sleep 600; }} | bash -s; echo "${{PIPESTATUS[1]}}"
        """
    process = subprocess.Popen(["bash", "-c", code], stdout=subprocess.PIPE, text=True)
    launch = Launch(process, cluster.root / "records").wait_running(1)
    cluster.launches.append(launch)
    until(lambda: not any(is_alive(pid) for pid in launch.pids))
    for child in psutil.Process(process.pid).children(recursive=True):
        child.kill()
    assert launch.end()[1].splitlines()[-1] == "137"


@pytest.mark.slow
def test_ranks_do_not_outlive_a_torchrun_that_was_killed(cluster: Cluster) -> None:
    launch = cluster.start("ssh_multi_node.sh", "localhost", "1", "x.py", TORCHRUN_DOES="die")
    assert launch.end()[0] == 137


def test_what_a_node_lacks_is_one_sentence(cluster: Cluster) -> None:
    launch = cluster.start("ssh_docker_multi_node.sh", "box", "/nowhere", "localhost", "1", "x.py")
    code, _, err = launch.end()
    assert code == 1
    assert "[localhost] no folder /nowhere on this node" in err
    (cluster.programs / "torchrun").unlink()
    # An environment that is active: else that of this checkout, where there is one, would be taken.
    active = str(cluster.root / "venv")
    code, _, err = cluster.start(
        "ssh_multi_node.sh", "localhost", "1", "x.py", VIRTUAL_ENV=active
    ).end()
    assert code == 1
    assert "no torchrun on this node's PATH" in err


@pytest.mark.parametrize(
    ("script", "words", "said"),
    [
        ("ssh", ["a,b", "8"], "usage: "),
        ("ssh", ["a,,b", "8", "x"], "'' is no name of a host"),
        ("ssh", ["a,", "8", "x"], "HOSTS must be a comma list"),
        ("ssh", ["-oProxyCommand=id", "8", "x"], "is no name of a host"),
        ("ssh", ["a;id", "8", "x"], "is no name of a host"),
        ("ssh", ["a", "eight", "x"], "GPUS must be a whole number above 0, not 'eight'"),
        ("ssh_docker", ["box", "/w", "a", "8"], "usage: "),
        ("ssh_docker", ["box;id", "/w", "a", "8", "x"], "is no name of a container"),
        ("ssh_docker", ["box", "w", "a", "8", "x"], "begins with /"),
        ("srun", ["2", "8"], "usage: "),
        ("srun", ["0", "8", "x"], "NODES must be a whole number above 0"),
        ("srun", ["2", "8", "--pty", "--", "x"], "--pty: "),
        ("srun", ["2", "8", "--time", "9", "--"], "no command after '--'"),
    ],
)
def test_a_mistake_is_told_and_ends_with_2(
    cluster: Cluster, script: str, words: list[str], said: str
) -> None:
    code, out, err = cluster.start(f"{script}_multi_node.sh", *words).end()
    assert (code, out) == (2, "")
    assert said in err
    assert "line " not in err  # bash's own complaints


@pytest.mark.needs("shellcheck")
def test_shellcheck_has_nothing_to_say() -> None:
    files = [*SCRIPTS.glob("*_multi_node.sh"), *SCRIPTS.glob("lib/*.sh")]
    assert len(files) == 5
    done = subprocess.run(["shellcheck", "-x", *files], capture_output=True, text=True)
    assert done.stdout == ""
