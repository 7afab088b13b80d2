from __future__ import annotations

import json
from typing import Any

import pytest
from fakes import IM_END, count_up, say
from front_end_process import Service, Start


def test_the_official_client_completes(service: Service) -> None:
    service.engine.script = count_up
    answer = service.openai().completions.create(model="fake", prompt="Once")
    assert answer.choices[0].text == "0123456789012345"  # sixteen tokens, OpenAI's default
    assert answer.choices[0].finish_reason == "length"
    assert answer.object == "text_completion"
    chunks = service.openai().completions.create(model="fake", prompt="Once", stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == "0123456789012345"


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("ab", [[97, 98]]),
        (["ab", "c"], [[97, 98], [99]]),
        ([97, 98], [[97, 98]]),
        ([[97, 98], [99]], [[97, 98], [99]]),
    ],
)
def test_every_kind_of_prompt(service: Service, prompt: Any, expected: list[list[int]]) -> None:
    service.engine.script = lambda request: [*request.prompt_token_ids, IM_END]
    answer = service.post("/v1/completions", {"prompt": prompt, "n": 2}).json()
    assert sorted(r.prompt_token_ids for r in service.engine.added) == sorted(expected * 2)
    texts = [bytes(ids).decode() for ids in expected for _ in range(2)]
    assert [choice["text"] for choice in answer["choices"]] == texts
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(texts)))
    assert answer["usage"]["prompt_tokens"] == sum(map(len, expected))


@pytest.mark.parametrize("stream", [False, True])
def test_echo_and_legacy_logprobs_cover_prompt_and_output(service: Service, stream: bool) -> None:
    service.engine.script = say("cd")
    body = {"prompt": "ab", "echo": True, "logprobs": 1, "max_tokens": 2, "stream": stream}
    response = service.post("/v1/completions", body)
    if stream:
        parts = [p.removeprefix("data: ") for p in response.text.split("\n\n") if p]
        choices = [json.loads(part)["choices"][0] for part in parts[:-1]]
    else:
        choices = response.json()["choices"]
    merged: dict[str, list[Any]] = {}
    for choice in choices:
        for name, values in choice["logprobs"].items():
            merged.setdefault(name, []).extend(values)
    assert "".join(choice["text"] for choice in choices) == "abcd"
    assert merged["tokens"] == ["a", "b", "c", "d"]
    assert merged["text_offset"] == [0, 1, 2, 3]
    assert merged["token_logprobs"] == [None, -1.0, -1.0, -1.0]
    assert merged["top_logprobs"][0] is None
    assert merged["top_logprobs"][2] == {"d": -0.5, "c": -1.0}


def test_a_prompt_can_be_scored_without_output(service: Service) -> None:
    body = {"prompt": [97, 98], "echo": True, "logprobs": 0, "max_tokens": 0}
    answer = service.post("/v1/completions", body).json()
    choice = answer["choices"][0]
    assert choice["text"] == "ab"
    assert choice["logprobs"]["tokens"] == ["a", "b"]
    assert answer["usage"]["completion_tokens"] == 0
    refused = service.post("/v1/completions", {"prompt": "a", "max_tokens": 0})
    assert refused.status_code == 400


def test_offsets_count_characters_across_broken_bytes(service: Service) -> None:
    service.engine.script = say("aéb")
    body = {"prompt": "x", "logprobs": 0, "max_tokens": 10}
    logprobs = service.post("/v1/completions", body).json()["choices"][0]["logprobs"]
    assert logprobs["text_offset"] == [0, 1, 1, 2, 3]
    assert logprobs["tokens"] == ["a", "bytes:\\xc3", "bytes:\\xa9", "b", "<|im_end|>"]


def test_best_of_is_refused_unless_it_asks_for_nothing(service: Service) -> None:
    assert service.post("/v1/completions", {"prompt": "a", "best_of": 1}).status_code == 200
    refused = service.post("/v1/completions", {"prompt": "a", "best_of": 3, "n": 2})
    assert refused.json()["error"]["param"] == "best_of"


def test_without_a_tokenizer_tokens_go_in_and_out(start: Start) -> None:
    service = start(tokenizer_path=None, eos_token_ids=[IM_END])
    body = {"prompt": [1, 2], "max_tokens": 3, "return_token_ids": True, "logprobs": 1}
    choice = service.post("/v1/completions", body).json()["choices"][0]
    assert (choice["text"], choice["token_ids"]) == ("", list(b"Hel"))
    assert choice["logprobs"]["tokens"][0] == "token_id:72"
    for path, refused in [
        ("/v1/completions", {"prompt": "text"}),
        ("/v1/completions", {"prompt": [1], "stop": "a"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
        ("/tokenize", {"prompt": "a"}),
    ]:
        response = service.post(path, refused)
        assert (response.status_code, response.json()["error"]["code"]) == (400, "unsupported")


def test_the_tokenizer_can_be_asked(service: Service) -> None:
    tokens = service.post("/tokenize", {"prompt": "hé", "return_token_strs": True}).json()
    assert tokens["tokens"] == [104, 0xC3, 0xA9]
    assert (tokens["count"], tokens["max_model_len"]) == (3, 4096)
    assert tokens["token_strs"][0] == "h"
    chat = service.post("/tokenize", {"messages": [{"role": "user", "content": "hi"}]}).json()
    service.chat()
    assert chat["tokens"] == service.engine.added[-1].prompt_token_ids
    text = service.post("/detokenize", {"tokens": tokens["tokens"]}).json()
    assert text == {"prompt": "hé"}
    assert service.post("/tokenize", {}).status_code == 400
