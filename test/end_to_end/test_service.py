"""The whole service, as a user starts it: real processes, the embedded model, real clients."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from processes import until
from service_process import KEYS, REPO, Server, long_stream

from chitu_like import LLM, SamplingParams

QUESTION = [{"role": "user", "content": "What is a paged KV cache?"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("logs"))
    try:
        yield server.wait_ready()
    finally:
        server.close()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[list[Server]]:
    """Servers that a test may break."""
    servers: list[Server] = []
    yield servers
    for server in servers:
        server.close()


def test_the_openai_client_gets_what_llm_gives(server: Server):
    client = server.client()
    greedy = SamplingParams(temperature=0.0, max_tokens=40)
    sampled = SamplingParams(temperature=0.8, top_p=0.9, max_tokens=40, seed=11)
    with LLM(*KEYS, progress=False) as llm:
        expected = [llm.chat(QUESTION, params)[0].outputs[0].text for params in (greedy, sampled)]
        prompt = llm.render_chat(QUESTION)
    for params, text in zip((greedy, sampled), expected, strict=True):
        fields = {
            "temperature": params.temperature,
            "top_p": params.top_p,
            "max_tokens": params.max_tokens,
            "seed": params.seed,
        }
        answer = client.chat.completions.create(model="tiny-chat", messages=QUESTION, **fields)
        assert answer.choices[0].message.content == text
        stream = client.chat.completions.create(
            model="tiny-chat", messages=QUESTION, stream=True, **fields
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == text
        completion = client.completions.create(model="tiny-chat", prompt=prompt, **fields)
        assert completion.choices[0].text == text


def test_the_embedded_model_knows_what_it_is(server: Server):
    answer = server.client().chat.completions.create(
        model="tiny-chat", messages=QUESTION, temperature=0
    )
    assert "block" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_64_concurrent_streams_all_get_their_own_answer(server: Server):
    async def ask_all() -> list[str]:
        client = openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="x", timeout=120.0)

        async def ask(index: int) -> str:
            stream = await client.chat.completions.create(
                model="tiny-chat",
                messages=[{"role": "user", "content": f"What is {index % 8} + {index % 5}?"}],
                temperature=0,
                max_tokens=24,
                stream=True,
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        return await asyncio.gather(*(ask(index) for index in range(64)))

    answers = asyncio.run(ask_all())
    for index in range(40, 64):  # the same question, asked at once and in another batch
        assert answers[index] == answers[index - 40]
    assert all(answers)


def test_a_client_that_leaves_frees_its_blocks(server: Server):
    lines = long_stream(server)
    for _ in range(9):
        next(lines)
    assert server.load()["num_requests_running"] == 1
    lines.close()  # type: ignore[attr-defined]
    until(lambda: server.load()["num_requests_running"] == 0)
    assert server.load()["kv_cache_usage"] == 0.0


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/completions", {"prompt": list(range(3000))}, 400),
        ("/v1/completions", {"prompt": [10**7]}, 400),
        ("/v1/completions", {"prompt": "x", "max_tokens": -1}, 400),
        ("/v1/completions", {"prompt": "x", "n": 10**9}, 400),
        ("/v1/completions", {"prompt": "x", "logit_bias": {"99999999": 1}}, 400),
        ("/v1/completions", {"prompt": "x", "stop_token_ids": [99999999]}, 400),
        ("/v1/chat/completions", {"messages": []}, 400),
        ("/v1/chat/completions", {"messages": QUESTION, "model": "other"}, 404),
    ],
)
def test_a_bad_request_is_4xx_and_the_next_one_works(
    server: Server, path: str, body: dict[str, object], status: int
):
    response = httpx.post(server.url + path, json={"model": "tiny-chat", **body}, timeout=30.0)
    assert response.status_code == status
    error = response.json()["error"]
    assert error["message"]
    assert "\n" not in error["message"]
    good = httpx.post(
        server.url + "/v1/completions", json={"prompt": "x", "max_tokens": 1}, timeout=30.0
    )
    assert good.status_code == 200


@pytest.mark.slow
def test_an_idle_service_uses_no_cpu(server: Server):
    family = server.family()

    def used_s() -> float:
        return sum(sum(process.cpu_times()[:2]) for process in family)

    until(lambda: server.load()["num_requests_running"] == 0)
    time.sleep(1.0)
    before = used_s()
    time.sleep(3.0)
    assert used_s() - before < 0.15


def test_metrics_count_under_the_names_of_vllm(server: Server):
    text = httpx.get(server.url + "/metrics", timeout=10.0).text
    for name in (
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "vllm:prompt_tokens_total",
        "vllm:generation_tokens_total",
        "vllm:time_to_first_token_seconds_count",
        "vllm:e2e_request_latency_seconds_bucket",
    ):
        assert f"\n{name}{{" in text, name


@pytest.mark.slow
@pytest.mark.parametrize("torchrun", [False, True])
def test_sigterm_drains_and_exits_with_0(own: list[Server], tmp_path: Path, torchrun: bool):
    server = Server(tmp_path, num_ranks=1 if torchrun else None)
    own.append(server)
    server.wait_ready()
    lines = long_stream(server, max_tokens=600)
    next(lines)
    server.leader().send_signal(signal.SIGTERM)
    until(lambda: server.status("/ready") == 503)
    refused = httpx.post(server.url + "/v1/completions", json={"prompt": "x"}, timeout=60.0)
    assert refused.status_code == 503
    assert "retry-after" in refused.headers
    rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    assert server.end() == 0
    server.until_gone()
    for log in tmp_path.glob("*/*.log"):
        assert " ERROR " not in log.read_text()


@pytest.mark.slow
def test_a_killed_engine_is_told_to_every_client(own: list[Server], tmp_path: Path):
    """Under torchrun: test_failure.py."""
    server = Server(tmp_path)
    own.append(server)
    server.wait_ready()
    lines = long_stream(server)
    next(lines)
    killed_s = time.monotonic()
    server.leader().kill()
    frames = [line for line in lines if line]
    assert time.monotonic() - killed_s < 30.0  # a stall would be noticed after 60 s
    assert any('"error"' in frame for frame in frames[-2:])
    assert server.end() != 0
    server.until_gone()


@pytest.mark.slow
def test_a_stalled_engine_is_noticed_dumped_and_ended(own: list[Server], tmp_path: Path):
    server = Server(tmp_path, "serve.stall_timeout_s=2")
    own.append(server)
    server.wait_ready()
    lines = long_stream(server)
    next(lines)
    server.leader().send_signal(signal.SIGSTOP)
    stopped_s = time.monotonic()
    frames = [line for line in lines if line]
    assert time.monotonic() - stopped_s < 30.0  # 60 s are the default
    assert any('"error"' in frame for frame in frames[-2:])
    until(lambda: server.status("/health") in (0, 503))
    assert server.end() != 0


@pytest.mark.slow
def test_a_dead_front_end_ends_the_engine(own: list[Server], tmp_path: Path):
    server = Server(tmp_path)
    own.append(server)
    server.wait_ready()
    next(p for p in server.family() if "chitu_like.server" in p.cmdline()).kill()
    assert server.end() == 1


@pytest.mark.slow
def test_a_front_end_that_dies_while_it_drains_ends_the_engine(own: list[Server], tmp_path: Path):
    server = Server(tmp_path)
    own.append(server)
    server.wait_ready()
    lines = long_stream(server)
    next(lines)
    front_end = next(p for p in server.family() if "chitu_like.server" in p.cmdline())
    front_end.suspend()
    server.leader().send_signal(signal.SIGTERM)
    time.sleep(0.5)
    front_end.kill()
    assert server.end() == 1


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("infer.tp_sizes=2", "tp_size"),
        ("scheduler.type=fastest", "prefill_first"),
        ("models.ckpt_dir=/nowhere", "/nowhere"),
        ("infer.max_reqs=many", "infer.max_reqs"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path: Path, key: str, says: str):
    done = subprocess.run(
        [sys.executable, "-m", "chitu_like", key, f"log_dir={tmp_path}"],
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_what_is_said_at_start_and_of_a_request_and_what_is_not(tmp_path: Path):
    keys = ("serve.api_keys=[sk-hush]", "infer.stop_with_eos=False", "serve.model_name=mine")
    server = Server(tmp_path, *keys).wait_ready()
    try:
        client = server.client().with_options(api_key="sk-hush")
        answer = client.chat.completions.create(
            model="mine", messages=QUESTION, max_tokens=150, temperature=0
        )
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 150  # the answer itself is shorter
    finally:
        server.process.send_signal(signal.SIGTERM)
        assert server.end() == 0
    said = "".join(server.output)
    for part in ("infer.num_blocks", "auto: ", "weights", "KV cache", "requests of", "tp 1 x pp 1"):
        assert part in said, part
    assert f"ready: open {server.url}/" in said
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert sorted(path.name for path in folder.iterdir()) == ["http.log", "rank0.log"]
    (line,) = (s for s in (folder / "http.log").read_text().splitlines() if answer.id in s)
    for part in ("length:", "prompt=", "output=150", "queue_ms=", "prefill_ms=", "decode_ms="):
        assert part in line, part
    logs = "".join(path.read_text() for path in folder.iterdir())
    assert "sk-hush" not in said + logs
