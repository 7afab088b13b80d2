"""Several instances behind one front end: one goes, the others serve, and everybody can see it."""

from __future__ import annotations

import concurrent.futures
from typing import Any

import httpx
import pytest
from fakes import FakeEngine, count_up
from front_end_process import Start
from processes import until

ENDLESS: dict[str, Any] = {"prompt": "a", "max_tokens": 200, "ignore_eos": True, "stream": True}


def lose(engine: FakeEngine, cause: str) -> None:
    if cause == "failed":
        engine.fail("the device is gone")
    elif cause == "gone":
        engine.close()
    else:
        engine.is_stalled = True


@pytest.mark.parametrize(
    "cause", ["failed", *(pytest.param(c, marks=pytest.mark.slow) for c in ("gone", "stalled"))]
)
def test_one_instance_fails_alone(start: Start, cause: str) -> None:
    service = start(
        engine={"script": count_up, "delay_s": 0.01},
        num_instances=3,
        is_supervised=True,
        stall_timeout_s=2.0 if cause == "stalled" else 60.0,
    )
    with concurrent.futures.ThreadPoolExecutor(9) as threads:
        answers = [threads.submit(service.post, "/v1/completions", ENDLESS) for _ in range(9)]
        for engine in service.engines:
            engine.wait_until(lambda engine: len(engine.added) == 3)
        tokens = 'vllm:generation_tokens_total{engine="1",'
        until(lambda: service.metric(tokens) > 6)  # every stream has begun
        lose(service.engines[1], cause)
        texts = [answer.result().text for answer in answers]
    broken = [text for text in texts if '"engine_failed"' in text]
    assert len(broken) == 3
    assert all(text.endswith("data: [DONE]\n\n") for text in texts)
    assert sum('"finish_reason":"length"' in text for text in texts) == 6

    health = httpx.get(f"{service.url}/health")
    assert health.status_code == 200
    assert health.json() == {"status": "degraded", "instances_up": 2, "instances": 3}
    assert httpx.get(f"{service.url}/ready").status_code == 200
    assert service.metric("chitu_like:instances_up{") == 2
    assert service.metric("chitu_like:instances{") == 3
    assert service.metric('vllm:num_requests_running{engine="1",') == 0
    assert service.metric(tokens) > 6
    for _ in range(4):
        assert service.chat(max_tokens=2).status_code == 200
    assert len(service.engines[1].added) == 3

    told = service.next_event()
    assert (told["event"], told["instance"]) == ("lost", 1)
    service.order("drain")
    assert service.end() == 0
    assert [engine.was_shut_down for engine in service.engines] == [True, False, True]


def test_the_last_instance_takes_the_service_with_it(start: Start) -> None:
    service = start(num_instances=2, is_supervised=True)
    service.engines[0].close()
    assert service.next_event()["instance"] == 0
    assert httpx.get(f"{service.url}/health").json()["status"] == "degraded"
    service.engines[1].close()
    assert service.next_event()["instance"] == 1
    assert service.end() == 1


def test_it_is_ready_when_all_instances_are(start: Start) -> None:
    service = start(engine={"is_loading": True}, num_instances=2, wait=False)
    service.engines[0].is_loading = False
    service.engines[0].wait_until(lambda engine: not engine.is_loading)
    for path in ("/health", "/ready"):
        assert httpx.get(f"{service.url}{path}").json()["error"]["code"] == "loading"
    service.engines[1].is_loading = False
    service.wait_ready()
    assert httpx.get(f"{service.url}/health").json()["status"] == "ok"


def test_the_policy_is_the_one_that_was_asked_for(start: Start) -> None:
    service = start(num_instances=2, policy="round_robin")
    for _ in range(4):
        service.chat(max_tokens=1)
    assert [len(engine.added) for engine in service.engines] == [2, 2]


def test_an_unknown_policy_is_the_users_mistake(start: Start) -> None:
    service = start(wait=False, policy="least_load")
    assert service.first_event["event"] == "failed"
    assert "did you mean least_loaded?" in service.first_event["message"]
    assert service.end() == 2
