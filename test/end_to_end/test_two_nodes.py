"""Two nodes on one host: network namespaces with a cable between them, and the real script, torchrun and ranks.

The cluster's ssh enters a namespace; nothing else is pretended.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from processes import PATIENCE_S, until

from chitu_like import LLM, SamplingParams

pytestmark = [pytest.mark.slow, pytest.mark.needs("ip", "setsid")]

REPO = Path(__file__).resolve().parents[2]
HERE = Path(__file__).with_name("two_nodes")
IP = next((path for path in ("/usr/sbin/ip", "/sbin/ip", "/bin/ip") if Path(path).exists()), "ip")
# The head has the larger address: rank 0 is there because it comes first, not by its number.
HEAD, OTHER = "10.217.44.2", "10.217.44.1"
PORT = 21002
KEYS = ("models=tiny-chat", "dtype=float32", "infer.device=cpu", "infer.num_blocks=256")
QUESTION = [{"role": "user", "content": "What is a paged KV cache?"}]
ASK = """
import sys, urllib.request
call = urllib.request.Request(sys.argv[1], sys.argv[2].encode(), {"Content-Type": "application/json"})
print(urllib.request.urlopen(call, timeout=60).read().decode())
"""


def ip(words: str) -> None:
    subprocess.run([IP, *words.split()], check=True, capture_output=True, text=True)


def namespace(host: str) -> str:
    return f"chitu-{host}"


@pytest.fixture(scope="module")
def nodes() -> Iterator[None]:
    """Two namespaces and a cable."""
    try:
        ip(f"netns add {namespace(HEAD)}")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this user may not make network namespaces: {getattr(error, 'stderr', error)}")
    try:
        ip(f"netns add {namespace(OTHER)}")
        ip(
            f"link add eth9 netns {namespace(HEAD)} type veth peer name eth9 netns {namespace(OTHER)}"
        )
        for host in (HEAD, OTHER):
            ip(f"-n {namespace(host)} addr add {host}/24 dev eth9")
            ip(f"-n {namespace(host)} link set eth9 up")
            ip(f"-n {namespace(host)} link set lo up")
        yield
    finally:
        for host in (HEAD, OTHER):
            subprocess.run([IP, "netns", "delete", namespace(host)], check=False)


class Job:
    """script/ssh_multi_node.sh on both nodes."""

    def __init__(self, folder: Path, ranks_per_node: int, *words: str) -> None:
        environ = {
            **os.environ,
            "PATH": f"{HERE}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(REPO),
        }
        self.process = subprocess.Popen(
            [REPO / "script" / "ssh_multi_node.sh", f"{HEAD},{OTHER}", str(ranks_per_node), *words],
            cwd=folder,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(iter(self.process.stdout.readline, ""))

    def wait_for(self, text: str) -> None:
        until(lambda: self.process.poll() is not None or text in self.output())
        assert text in self.output(), self.output()

    def output(self) -> str:
        return "".join(self.lines)

    def end(self) -> int:
        """Exit code, once everything in both namespaces has ended."""
        code = self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        until(lambda: not any(processes_in(host) for host in (HEAD, OTHER)))
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for host in (HEAD, OTHER):
            for process in processes_in(host):
                process.kill()


def processes_in(host: str) -> list[psutil.Process]:
    done = subprocess.run(
        [IP, "netns", "pids", namespace(host)], capture_output=True, text=True, check=True
    )
    return [psutil.Process(int(pid)) for pid in done.stdout.split() if psutil.pid_exists(int(pid))]


@pytest.fixture
def jobs(nodes: None) -> Iterator[list[Job]]:
    started: list[Job] = []
    yield started
    for job in started:
        job.close()


def ask(job: Job, path: str, body: dict[str, object]) -> dict[str, object]:
    """Post to the job's service, from its own node."""
    inside = [IP, "netns", "exec", namespace(HEAD), sys.executable, "-c", ASK]
    words = [*inside, f"http://127.0.0.1:{PORT}{path}", json.dumps(body)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr + job.output()
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


@pytest.fixture(scope="module")
def expected() -> str:
    """What one rank answers."""
    with LLM(*KEYS, progress=False) as llm:
        params = SamplingParams(temperature=0.0, max_tokens=24)
        return llm.chat(QUESTION, params)[0].outputs[0].text


def test_ranks_of_both_nodes_meet_in_the_order_of_hosts(jobs: list[Job], tmp_path: Path) -> None:
    jobs.append(job := Job(tmp_path, 2, str(HERE / "all_reduce.py"), "a b", "$x"))
    assert job.end() == 0, job.output()
    hosts = [HEAD, HEAD, OTHER, OTHER]
    for rank, host in enumerate(hosts):
        said = f"[{host}] rank {rank} at {host}: 1111, ['a b', '$x']\n"
        assert said in job.lines, job.output()


def test_ctrl_c_leaves_no_process_on_any_node(jobs: list[Job], tmp_path: Path) -> None:
    jobs.append(job := Job(tmp_path, 1, str(HERE / "all_reduce.py"), "wait", str(tmp_path)))
    job.wait_for("rank 1 ")
    os.killpg(job.process.pid, signal.SIGINT)
    assert job.end() == 130, job.output()


def test_a_killed_rank_ends_both_nodes(jobs: list[Job], tmp_path: Path) -> None:
    jobs.append(job := Job(tmp_path, 1, str(HERE / "all_reduce.py"), "wait", str(tmp_path)))
    job.wait_for("rank 1 ")
    file = tmp_path / "1"
    until(lambda: file.exists() and file.read_text() != "")
    os.kill(int(file.read_text()), signal.SIGKILL)
    assert job.end() == 1
    assert f"==> {OTHER} ended with code 1: ending the job" in job.output()


@pytest.mark.parametrize("layout", ["infer.tp_size=2", "infer.pp_size=2", "deploy.replicas=2"])
def test_a_model_across_nodes_answers_as_one_rank_and_drains(
    jobs: list[Job], tmp_path: Path, expected: str, layout: str
) -> None:
    keys = (*KEYS, layout, f"serve.port={PORT}", f"log_dir={tmp_path}")
    jobs.append(job := Job(tmp_path, 1, "-m", "chitu_like", *keys))
    job.wait_for("ready: open")
    body = {"model": "tiny-chat", "messages": QUESTION, "temperature": 0, "max_tokens": 24}
    for _ in range(2):  # with replicas, one for each
        answer = ask(job, "/v1/chat/completions", body)
        assert answer["choices"][0]["message"]["content"] == expected  # type: ignore[index]
    os.killpg(job.process.pid, signal.SIGINT)
    assert job.end() == 0, job.output()
    assert "drained" in job.output()
    assert "Traceback" not in job.output()
