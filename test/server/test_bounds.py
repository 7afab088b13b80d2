"""What is too much or nonsense gets a 4xx in OpenAI's shape, and the next request works."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from front_end_process import Service, Start

HI = [{"role": "user", "content": "hi"}]


def error_of(response: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "/" not in error["message"].replace("application/json", "").replace("/v1/", "")
    assert "Traceback" not in response.text
    return error


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 10**9}, "n"),
        ({"n": 0}, "n"),
        ({"max_tokens": 10**18}, "max_tokens"),
        ({"max_tokens": 5000}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"temperature": 1e308}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -2, "min_p": 7}, "min_p"),
        ({"seed": 2**70}, "seed"),
        ({"logprobs": True, "top_logprobs": 10**6}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logit_bias": {"1e3": 1}}, "logit_bias"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"logit_bias": {str(i): 0.0 for i in range(2000)}}, "logit_bias"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": ["x" * 600]}, "stop"),
        ({"stop_token_ids": [300]}, "stop_token_ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, "messages"),
        ({"messages": HI * 5000}, "messages"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, None),
        ({"priority": 1000}, "priority"),
        ({"min_tokens": 9, "max_tokens": 3}, "min_tokens"),
        ({"model": 3}, "model"),
        ({"stream": "yes"}, "stream"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    ],
)
def test_a_value_out_of_range_is_named(
    service: Service, fields: dict[str, Any], param: str | None
) -> None:
    response = service.chat(**fields)
    assert response.status_code == 400, response.text
    error = error_of(response)
    if param is not None:
        assert error["param"] == param
    assert service.engine.added == []
    assert service.chat(max_tokens=1).status_code == 200


@pytest.mark.parametrize(
    "prompt",
    [
        None,
        [],
        "",
        5,
        {},
        [[]],
        [1, "a"],
        ["a", 1],
        [[1], []],
        [-1],
        [259],
        [2**40],
        [1] * 5000,
        ["a"] * 2000,
        [[1]] * 2000,
        [[[1]]],
        [True],
    ],
)
def test_a_prompt_that_is_none_is_refused(service: Service, prompt: object) -> None:
    response = service.post("/v1/completions", {"prompt": prompt})
    assert response.status_code == 400, response.text
    error_of(response)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"\xff\xfe",
        b'{"messages":' * 100_000,
        b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        b'{"messages": NaN}',
    ],
)
def test_a_broken_body_is_refused(service: Service, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    response = httpx.post(f"{service.url}/v1/chat/completions", content=body, headers=headers)
    assert response.status_code == 400
    error_of(response)


def test_a_deep_value_in_a_known_field_is_refused(service: Service) -> None:
    nested = b"[" * 5000 + b"]" * 5000
    body = b'{"messages":[{"role":"user","content":"x"}],"chat_template_kwargs":{"a":%s}}' % nested
    headers = {"Content-Type": "application/json"}
    response = httpx.post(f"{service.url}/v1/chat/completions", content=body, headers=headers)
    assert response.status_code == 400


def test_another_content_type_is_refused(service: Service) -> None:
    response = httpx.post(f"{service.url}/v1/chat/completions", content=b'{"messages":[]}')
    assert response.status_code == 400
    assert "application/json" in response.json()["error"]["message"]


def test_a_body_beyond_the_limit_is_refused_before_it_is_kept(service: Service) -> None:
    def endless() -> Any:
        for _ in range(1000):
            yield b" " * 65536

    headers = {"Content-Type": "application/json"}
    url = f"{service.url}/v1/chat/completions"
    declared = httpx.post(url, content=b" " * (5 << 20), headers=headers)
    assert (declared.status_code, error_of(declared)["code"]) == (413, "too_large")
    try:
        streamed = httpx.post(url, content=endless(), headers=headers)
        assert streamed.status_code == 413
    except httpx.WriteError:  # it may also be cut while it still sends
        pass
    assert service.chat(max_tokens=1).status_code == 200


def test_paths_and_methods_that_do_not_exist(service: Service) -> None:
    assert error_of(httpx.get(f"{service.url}/v2/models"))["code"] == "not_found"
    wrong = httpx.get(f"{service.url}/v1/completions")
    assert (wrong.status_code, error_of(wrong)["code"]) == (405, "method_not_allowed")
    assert httpx.get(f"{service.url}/static/../front_end.py").status_code == 404
    assert httpx.get(f"{service.url}/static/%2e%2e/front_end.py").status_code == 404


def test_more_requests_than_fit_are_refused_and_told_when_to_come_back(start: Start) -> None:
    service = start(engine={"max_reqs": 2}, max_queued_requests=1)
    service.engine.is_stalled = True
    with httpx.Client(timeout=0.3) as client:
        for _ in range(3):
            with pytest.raises(httpx.ReadTimeout):
                client.post(f"{service.url}/v1/completions", json={"prompt": "a"})
            break
    service.engine.wait_until(lambda engine: len(engine.aborted) == 1)  # the one that left
    alone = service.post("/v1/completions", {"prompt": "a", "n": 4})
    assert alone.status_code == 400  # would never fit
    import concurrent.futures

    with concurrent.futures.ThreadPoolExecutor(3) as threads:
        held = [threads.submit(service.post, "/v1/completions", {"prompt": "a"}) for _ in range(3)]
        service.engine.wait_until(lambda engine: engine.num_open == 3)
        full = service.post("/v1/completions", {"prompt": "a"})
        assert full.status_code == 503
        assert full.headers["retry-after"] == "1"
        assert error_of(full)["code"] == "overloaded"
        service.engine.is_stalled = False
        assert [future.result().status_code for future in held] == [200, 200, 200]
    assert service.post("/v1/completions", {"prompt": "a"}).status_code == 200


def test_ids_beyond_the_vocabulary_have_no_text(service: Service) -> None:
    response = service.post("/detokenize", {"tokens": [5, 10**7]})
    assert response.status_code == 400
    error = error_of(response)
    assert error["param"] == "tokens"
    assert "10000000 is outside the vocabulary" in error["message"]
