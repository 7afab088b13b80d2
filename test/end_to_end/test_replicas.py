"""Several instances in one torchrun job: they share the load, fail alone and end together."""

from __future__ import annotations

import asyncio
import collections
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from processes import is_alive, until
from service_process import Server, long_stream

pytestmark = pytest.mark.slow
STALL_S = 4.0
NOTICED_WITHIN_S = STALL_S + 26.0  # on a busy machine; 60 s are the default


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(*keys: str, replicas: int, tp_size: int = 1, wait: bool = True) -> Server:
        layout = (f"deploy.replicas={replicas}", f"infer.tp_size={tp_size}")
        stall = f"serve.stall_timeout_s={STALL_S}"
        servers.append(Server(tmp_path, *layout, stall, *keys, num_ranks=replicas * tp_size))
        return servers[-1].wait_ready() if wait else servers[-1]

    yield start
    for server in servers:
        server.close()


def rank_of(server: Server, rank: int) -> psutil.Process:
    """The process that computes; its supervisor is its parent."""
    ranks = [p for p in server.family() if "chitu_like.supervisor.rank" in p.cmdline()]
    return next(p for p in ranks if p.environ()["RANK"] == str(rank))


def get(server: Server, path: str) -> httpx.Response:
    return httpx.get(server.url + path, timeout=60.0)


def metric(server: Server, series: str) -> float:
    lines = get(server, "/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith(series)).rpartition(" ")[2])


def running(server: Server, num_instances: int) -> list[float]:
    series = [f'vllm:num_requests_running{{engine="{i}",' for i in range(num_instances)]
    return [metric(server, name) for name in series]


class Streams:
    """Many streams at once, in a thread of their own."""

    def __init__(self, server: Server, num_streams: int, max_tokens: int) -> None:
        self._url = server.url + "/v1/completions"
        self._sizes = num_streams, max_tokens
        self.ends: collections.Counter[str] = collections.Counter()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._ask_all()), daemon=True)
        self._thread.start()

    def wait(self) -> collections.Counter[str]:
        """How they ended: done or error."""
        self._thread.join(300)
        assert not self._thread.is_alive()
        return self.ends

    async def _ask_all(self) -> None:
        num_streams, max_tokens = self._sizes
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=300, limits=limits) as client:
            await asyncio.gather(*(self._ask(client, i, max_tokens) for i in range(num_streams)))

    async def _ask(self, client: httpx.AsyncClient, index: int, max_tokens: int) -> None:
        body = {"prompt": f"Stream {index}", "max_tokens": max_tokens, "ignore_eos": True}
        async with client.stream("POST", self._url, json=body | {"stream": True}) as response:
            lines = [line async for line in response.aiter_lines() if line]
        assert lines[-1] == "data: [DONE]"
        self.ends["error" if '"error"' in lines[-2] else "done"] += 1


def complete(server: Server, max_tokens: int = 8) -> str:
    body = {"prompt": "What is", "max_tokens": max_tokens, "temperature": 0}
    answer = httpx.post(server.url + "/v1/completions", json=body, timeout=60.0)
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["text"]
    return text


def test_instances_share_the_load_and_are_lost_alone(start: Callable[..., Server]) -> None:
    server = start(replicas=3)
    assert get(server, "/health").json()["status"] == "ok"

    streams = Streams(server, 24, max_tokens=400)
    until(lambda: running(server, 3) == [8, 8, 8])
    rank_of(server, 1).kill()
    until(lambda: get(server, "/health").json()["status"] == "degraded", NOTICED_WITHIN_S)
    assert get(server, "/health").json()["instances_up"] == 2
    assert metric(server, "chitu_like:instances_up") == 2
    assert complete(server)
    assert streams.wait() == {"error": 8, "done": 16}

    streams = Streams(server, 8, max_tokens=600)
    until(lambda: running(server, 3) == [4, 0, 4])
    stopped = rank_of(server, 2)
    stopped.suspend()
    until(lambda: metric(server, "chitu_like:instances_up") == 1, NOTICED_WITHIN_S)
    until(lambda: not is_alive(stopped))  # it was killed where it stood
    assert streams.wait() == {"error": 4, "done": 4}
    assert complete(server)
    assert get(server, "/ready").status_code == 200

    rank_of(server, 0).parent().send_signal(signal.SIGTERM)
    assert server.end() != 0  # two supervisors end with 1: their ranks were lost
    server.until_gone()
    said = "".join(server.output)
    assert "rank 1 of instance 1 is lost: it was ended by SIGKILL" in said
    assert "no step for 4 s" in said


def test_a_drain_ends_all_with_0_and_leaves_nothing(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    server = start(replicas=2)
    lines = long_stream(server, max_tokens=600)
    next(lines)
    rank_of(server, 0).parent().send_signal(signal.SIGTERM)
    until(lambda: server.status("/ready") == 503)
    assert [line for line in lines if line][-1] == "data: [DONE]"
    assert server.end() == 0
    server.until_gone()
    (logs,) = (path for path in tmp_path.iterdir() if path.is_dir())
    names = ["http.log", "rank0.log", "rank1.log", "supervisor.log"]
    assert sorted(path.name for path in logs.iterdir()) == names
    for log in logs.iterdir():
        assert " ERROR " not in log.read_text()


@pytest.mark.parametrize("victim", ["head", "follower", "front end"])
def test_no_rank_outlives_its_job(start: Callable[..., Server], victim: str) -> None:
    server = start("serve.drain_timeout_s=2", replicas=2)
    lines = long_stream(server, max_tokens=2000)
    next(lines)
    if victim == "front end":
        next(p for p in server.family() if "chitu_like.server" in p.cmdline()).kill()
    else:
        rank_of(server, 0 if victim == "head" else 1).parent().kill()
    assert server.end() != 0
    server.until_gone()


def test_a_checkpoint_that_does_not_fit_is_one_line_and_ends_all(
    start: Callable[..., Server],
) -> None:
    server = start("models.hf_overrides.intermediate_size=100", replicas=2, wait=False)
    assert server.end() != 0
    said = [line for line in server.output if line.startswith("chitu_like: ")]
    assert len(said) == 1, "".join(server.output)
    assert "does not fit its config.json" in said[0]


def test_instances_of_two_ranks_lose_both_and_give_the_same_tokens(
    start: Callable[..., Server],
) -> None:
    server = start("router.policy=round_robin", replicas=2, tp_size=2)
    texts = {complete(server, 30) for _ in range(4)}
    assert len(texts) == 1
    streams = Streams(server, 8, max_tokens=200)
    until(lambda: running(server, 2) == [4, 4])
    leader, worker = rank_of(server, 2), rank_of(server, 3)
    worker.kill()
    until(lambda: get(server, "/health").json()["status"] == "degraded", NOTICED_WITHIN_S)
    until(lambda: not is_alive(leader) and not is_alive(worker))
    assert streams.wait() == {"error": 4, "done": 4}
    assert {complete(server, 30)} == texts
    rank_of(server, 0).parent().send_signal(signal.SIGTERM)
    assert server.end() != 0
    server.until_gone()
