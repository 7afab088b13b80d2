"""Keys, loading, draining, and every way in which a client, the leader or an engine can go away."""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import httpx
import psutil
import pytest
from fakes import count_up, say
from front_end_process import Service, Start

ENDLESS: dict[str, Any] = {"prompt": "a", "max_tokens": 4000, "ignore_eos": True}


def wait_for(is_true: Any, timeout_s: float = 60.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline_s, f"never came true within {timeout_s} s"
        time.sleep(0.01)


def raw_post(service: Service, path: str, body: dict[str, Any]) -> socket.socket:
    """Send a request by hand, so that the test decides when to read and when to hang up."""
    content = json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", service.port))
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return connection


def last_error(stream_text: str) -> dict[str, Any]:
    frames = [part for part in stream_text.split("\n\n") if part.startswith("data: {")]
    error: dict[str, Any] = json.loads(frames[-1].removeprefix("data: "))["error"]
    return error


# ---- clients that leave or do not read ----


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("is_queued", [False, True])
def test_a_client_that_leaves_frees_its_requests(
    service: Service, stream: bool, is_queued: bool
) -> None:
    service.engine.script = count_up
    service.engine.delay_s = 0.01
    service.engine.is_stalled = is_queued
    connection = raw_post(service, "/v1/completions", {**ENDLESS, "n": 2, "stream": stream})
    service.engine.wait_until(lambda engine: len(engine.added) == 2)
    if stream and not is_queued:
        assert b"200 OK" in connection.recv(1000)
    connection.close()
    service.engine.wait_until(lambda engine: engine.num_open == 0)
    service.engine.is_stalled = False
    assert len(service.engine.aborted) == 2
    assert service.chat(max_tokens=1).status_code == 200


def test_a_client_that_does_not_read_is_cut_and_the_others_go_on(service: Service) -> None:
    """Its tokens pile up in the sockets, then in a bounded inbox; then it is given up."""
    service.engine.script = lambda request: [48] * (request.params.max_tokens or 100)
    service.engine.delay_s = 0.0
    sleeper = socket.socket()
    sleeper.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sleeper.connect(("127.0.0.1", service.port))
    body = {**ENDLESS, "n": 8, "stream": True, "logprobs": 20, "return_token_ids": True}
    content = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    sleeper.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    service.engine.wait_until(lambda engine: len(engine.added) == 8)
    assert service.chat(max_tokens=5).status_code == 200
    service.engine.wait_until(lambda engine: len(engine.aborted) == 8, timeout_s=60)
    assert service.chat(max_tokens=5).status_code == 200
    sleeper.close()


def test_64_streams_at_once_each_get_their_own_text(service: Service) -> None:
    service.engine.script = lambda request: [*request.prompt_token_ids * 20, 257]

    def ask(index: int) -> bool:
        prompt = f"<{index}>"
        body = {"prompt": prompt, "max_tokens": 500, "stream": True}
        parts = service.post("/v1/completions", body).text.split("\n\n")
        texts = [json.loads(p[6:])["choices"][0]["text"] for p in parts if p.startswith("data: {")]
        return "".join(texts) == prompt * 20

    with concurrent.futures.ThreadPoolExecutor(64) as threads:
        assert all(threads.map(ask, range(64)))
    assert service.engine.num_open == 0


def test_silence_is_bridged_with_comments(start: Start) -> None:
    service = start(keep_alive_s=0.1)
    service.engine.is_stalled = True
    with httpx.stream(
        "POST", f"{service.url}/v1/completions", json={**ENDLESS, "stream": True}
    ) as r:
        assert r.status_code == 200
        lines = r.iter_lines()
        assert next(lines) == ": keep-alive"
        service.engine.is_stalled = False
        assert any(line.startswith("data: ") for line in lines)


# ---- deadlines ----


@pytest.mark.parametrize("stream", [False, True])
def test_a_deadline_ends_a_request_and_frees_it(start: Start, stream: bool) -> None:
    service = start(
        engine={"script": count_up, "delay_s": 0.02}, request_timeout_s=0.4, keep_alive_s=0.1
    )
    response = service.post("/v1/completions", {**ENDLESS, "stream": stream})
    if stream:
        assert response.status_code == 200
        assert last_error(response.text)["code"] == "timeout"
        assert response.text.endswith("data: [DONE]\n\n")
    else:
        assert response.status_code == 504
        assert response.json()["error"]["type"] == "timeout_error"
    service.engine.wait_until(lambda engine: engine.num_open == 0)
    assert service.engine.added[0].timeout_s == 0.4


# ---- keys ----


def test_keys_guard_what_costs_and_leave_health_open(start: Start) -> None:
    service = start(api_keys=["good", "other"], admin_api_key="boss")
    assert service.openai("good").models.list().data[0].id == "fake"
    for headers in ({}, {"Authorization": "Bearer bad"}, {"Authorization": "good"}):
        response = service.post("/v1/completions", {"prompt": "a"}, headers=headers)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.json()["error"]["code"] == "invalid_api_key"
    for path in ("/v1/models", "/tokenizer_info", "/v1/models/fake"):
        assert httpx.get(service.url + path).status_code == 401
    for path in ("/health", "/ready", "/metrics", "/load", "/version", "/", "/docs"):
        assert httpx.get(service.url + path).status_code == 200
    assert (
        service.post("/admin/drain", {}, headers={"Authorization": "Bearer good"}).status_code
        == 401
    )
    assert (
        service.post("/admin/drain", {}, headers={"Authorization": "Bearer boss"}).status_code
        == 200
    )
    assert service.end() == 0


def test_admin_routes_are_off_without_their_key(service: Service) -> None:
    headers = {"Authorization": "Bearer x"}
    assert service.post("/admin/drain", {}, headers=headers).status_code == 404
    assert httpx.get(f"{service.url}/ready").status_code == 200


# ---- loading, draining, failing ----


def test_it_listens_while_the_model_loads(start: Start) -> None:
    service = start(engine={"is_loading": True}, wait=False)
    for path in ("/health", "/ready"):
        response = httpx.get(service.url + path)
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "loading"
    refused = service.chat()
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
    assert httpx.get(f"{service.url}/load").json()["state"] == "loading"
    assert httpx.get(f"{service.url}/").status_code == 200
    service.engine.is_loading = False
    service.wait_ready()
    assert httpx.get(f"{service.url}/health").status_code == 200
    assert service.chat().status_code == 200


def test_draining_finishes_open_requests_refuses_new_ones_and_exits_0(start: Start) -> None:
    service = start(engine={"delay_s": 0.03})
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        open_one = threads.submit(service.chat, stream=True)
        service.engine.wait_until(lambda engine: engine.num_open == 1)
        service.order("drain")
        wait_for(lambda: httpx.get(f"{service.url}/ready").status_code == 503)
        assert httpx.get(f"{service.url}/health").status_code == 200
        refused = service.chat()
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert "retry-after" in refused.headers
        assert open_one.result().text.endswith("data: [DONE]\n\n")
        assert '"finish_reason":"stop"' in open_one.result().text
    assert service.end() == 0
    assert service.engine.was_shut_down


def test_draining_ends_in_time(start: Start) -> None:
    service = start(engine={"script": count_up, "delay_s": 0.05}, drain_timeout_s=0.3)
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        open_one = threads.submit(service.post, "/v1/completions", {**ENDLESS, "stream": True})
        service.engine.wait_until(lambda engine: engine.num_open == 1)
        service.order("drain")
        assert "shutting down" in last_error(open_one.result().text)["message"]
    assert service.end() == 0


@pytest.mark.parametrize(
    "cause",
    [
        "stdin closed",
        *(pytest.param(c, marks=pytest.mark.slow) for c in ("engine failed", "engine gone")),
    ],
)
def test_every_client_hears_of_a_failure_and_the_process_ends(start: Start, cause: str) -> None:
    service = start(engine={"script": count_up, "delay_s": 0.02})
    with concurrent.futures.ThreadPoolExecutor(3) as threads:
        streams = [
            threads.submit(service.post, "/v1/completions", {**ENDLESS, "stream": True})
            for _ in range(2)
        ]
        whole = threads.submit(service.post, "/v1/completions", ENDLESS)
        service.engine.wait_until(lambda engine: engine.num_open == 3)
        wait_for(lambda: service.metric("vllm:generation_tokens_total{") > 6)  # all have begun
        began_s = time.monotonic()
        if cause == "stdin closed":
            service.lose_leader()
        elif cause == "engine failed":
            service.engine.fail("the device is gone: /secret/path")
        else:
            service.engine.close()
        for stream in streams:
            error = last_error(stream.result().text)
            assert error["code"] == "engine_failed"
            assert "secret" not in error["message"]
        assert whole.result().status_code == 503
        assert not service.is_healthy()
    assert service.end() == 1
    assert time.monotonic() - began_s < 20  # a stall would be noticed after 60 s


@pytest.mark.slow
def test_a_stalled_leader_is_told_to_dump_then_killed(start: Start) -> None:
    """The leader here is a process that notes SIGUSR1 and would live for ever."""
    code = (
        "import faulthandler, signal, time; faulthandler.register(signal.SIGUSR1);"
        "print('up', flush=True); time.sleep(600)"
    )
    leader = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert leader.stdout is not None
    assert leader.stdout.readline() == "up\n"
    service = start(stall_timeout_s=0.5, leader_pid=leader.pid)
    time.sleep(1.0)  # idle is no stall
    assert service.chat().status_code == 200
    service.engine.is_stalled = True
    response = service.post("/v1/completions", {**ENDLESS, "stream": True})
    assert response.status_code == 503 or last_error(response.text)["code"] == "engine_failed"
    assert not service.is_healthy()
    assert service.end() == 1
    _, stacks = leader.communicate(timeout=60)
    assert leader.returncode == -signal.SIGKILL
    assert "most recent call first" in stacks


def test_the_leaders_death_is_seen_even_if_its_pipe_stays_open(start: Start) -> None:
    leader = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    service = start(leader_pid=leader.pid)
    leader.kill()
    leader.wait()
    assert service.end() == 1


def test_signals_to_the_process_group_do_not_end_it(start: Start) -> None:
    service = start()
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(service.process.pid, number)
    time.sleep(0.3)
    assert service.chat().status_code == 200


def test_a_port_in_use_is_the_users_mistake_in_one_line(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        service = start(wait=False, port=port)
        assert service.first_event["event"] == "failed"
        assert str(port) in service.first_event["message"]
        assert "serve.port" in service.first_event["message"]
        assert service.end() == 2


def test_a_missing_tokenizer_is_the_users_mistake(start: Start, tmp_path: Any) -> None:
    service = start(wait=False, tokenizer_path=str(tmp_path))
    assert service.first_event["event"] == "listening"
    event = service.next_event()
    assert event["event"] == "failed"
    assert "tokenizer" in event["message"]
    assert service.end() == 2


@pytest.mark.slow
def test_idle_costs_no_cpu(start: Start) -> None:
    service = start()
    service.chat()
    process = psutil.Process(service.process.pid)
    before = process.cpu_times()
    time.sleep(2.0)
    after = process.cpu_times()
    used_s = after.user + after.system - before.user - before.system
    assert used_s <= 0.04, f"{used_s:.3f} s of CPU in 2 s"


# ---- what it tells of itself ----


def test_metrics_carry_the_vllm_names(start: Start) -> None:
    service = start(engine={"script": say("abc")})
    service.chat()
    service.chat(max_tokens=2)
    service.chat(stop="b")
    running = 'num_requests_running{engine="0",model_name="fake"} 0.0'
    wait_for(lambda: running in httpx.get(f"{service.url}/metrics").text)
    text = httpx.get(f"{service.url}/metrics").text
    values = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            values[name] = float(value)
    label, engine = '{model_name="fake"}', '{engine="0",model_name="fake"}'
    assert values[f"vllm:num_requests_running{engine}"] == 0
    assert values[f"vllm:time_to_first_token_seconds_count{label}"] == 3
    assert values[f"vllm:e2e_request_latency_seconds_count{label}"] == 3
    assert values[f"vllm:request_queue_time_seconds_count{label}"] == 2  # not of the stop string
    assert values[f"vllm:inter_token_latency_seconds_count{label}"] == 3 + 1 + 1
    assert values[f"vllm:time_per_output_token_seconds_count{label}"] == 3
    assert values[f"vllm:prompt_tokens_total{engine}"] == 63
    assert values[f"vllm:iteration_tokens_total_count{label}"] >= 8
    success = 'vllm:request_success_total{{finished_reason="{}",model_name="fake"}}'
    assert values[success.format("stop")] == 2
    assert values[success.format("length")] == 1
    for name in ("kv_cache_usage_perc", "num_preemptions_total", "prefix_cache_hits_total"):
        assert f"vllm:{name}{engine}" in values
    assert values[f"chitu_like:instances_up{label}"] == 1


def test_models_version_and_load(service: Service) -> None:
    models = httpx.get(f"{service.url}/v1/models").json()
    assert models["data"][0]["id"] == "fake"
    assert models["data"][0]["max_model_len"] == 4096
    assert httpx.get(f"{service.url}/v1/models/fake").json()["object"] == "model"
    missing = httpx.get(f"{service.url}/v1/models/org/other")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
    assert httpx.get(f"{service.url}/version").json()["version"]
    assert httpx.get(f"{service.url}/load").json()["server_load"] == 0


def test_each_finished_request_is_one_log_line(start: Start, tmp_path: Any) -> None:
    service = start(log_dir=str(tmp_path), started="now")
    answer = service.chat(max_tokens=3).json()
    service.chat(stop="e")
    lines = (tmp_path / "now" / "http.log").read_text().splitlines()
    finished = [line for line in lines if " prompt=21 " in line]
    assert len(finished) == 2
    assert f"{answer['id']}-0 length: prompt=21 output=3 cached=0 queue_ms=1.0" in finished[0]
    assert "stop: prompt=21 output=2 cached=0 queue_ms=- " in finished[1]
    assert not any("s3cret" in line for line in lines)
