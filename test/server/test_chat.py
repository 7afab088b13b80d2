from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
from fakes import END_OF_TEXT, IM_END, IM_START, count_up, say
from front_end_process import Service, Start

HI: list[Any] = [{"role": "user", "content": "hi"}]


def frames(response: httpx.Response) -> list[dict[str, Any]]:
    """The JSON of a stream's frames, [DONE] checked and taken away."""
    data = [part.removeprefix("data: ") for part in response.text.split("\n\n") if part]
    data = [part for part in data if not part.startswith(":")]
    assert data.pop() == "[DONE]"
    return [json.loads(part) for part in data]


def test_the_official_client_chats(service: Service) -> None:
    answer = service.openai().chat.completions.create(model="fake", messages=HI)
    choice = answer.choices[0]
    assert choice.message.role == "assistant"
    assert choice.message.content == "Hello from the fake engine."
    assert choice.finish_reason == "stop"
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len("Hello from the fake engine.") + 1  # its end
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_the_official_client_streams_what_it_gets_at_once(service: Service) -> None:
    service.engine.script = say("Grüße, 世界! 🐦")
    client = service.openai()
    whole = client.chat.completions.create(model="fake", messages=HI)
    chunks = list(client.chat.completions.create(model="fake", messages=HI, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content == "Grüße, 世界! 🐦"
    assert "\ufffd" not in "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:])
    assert [chunk.choices[0].finish_reason for chunk in chunks].count(None) == len(chunks) - 1
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in chunks)


def test_usage_comes_last_and_only_on_request(service: Service) -> None:
    without = frames(service.chat(stream=True))
    assert all("usage" not in frame for frame in without)
    with_usage = frames(service.chat(stream=True, stream_options={"include_usage": True}))
    assert all(frame["usage"] is None for frame in with_usage[:-1])
    assert with_usage[-1]["choices"] == []
    assert with_usage[-1]["usage"]["completion_tokens"] == 28
    options = {"include_usage": True, "continuous_usage_stats": True}
    counts = [
        frame["usage"]["completion_tokens"]
        for frame in frames(service.chat(stream=True, stream_options=options))
    ]
    assert counts == sorted(counts)
    assert counts[-1] == 28


def test_the_prompt_is_what_the_template_makes_of_the_messages(service: Service) -> None:
    messages = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    service.post("/v1/chat/completions", {"messages": messages})
    expected = [IM_START, *b"system\nBe kind.", IM_END, *b"\n"]
    expected += [IM_START, *b"user\na\nb", IM_END, *b"\n", IM_START, *b"assistant\n"]
    assert service.engine.added[-1].prompt_token_ids == expected


def test_a_chat_without_limit_may_use_the_context_that_is_left(service: Service) -> None:
    service.chat()
    request = service.engine.added[-1]
    assert request.params.max_tokens == 4096 - len(request.prompt_token_ids)
    service.chat(max_completion_tokens=7, max_tokens=9)
    assert service.engine.added[-1].params.max_tokens == 7


def test_the_last_message_can_be_continued(service: Service) -> None:
    messages = [*HI, {"role": "assistant", "content": "Well, "}]
    body = {"messages": messages, "continue_final_message": True}
    assert service.post("/v1/chat/completions", body).status_code == 200
    assert bytes(service.engine.added[-1].prompt_token_ids[-6:]) == b"Well, "
    refused = service.post("/v1/chat/completions", {**body, "add_generation_prompt": True})
    assert refused.status_code == 400


def test_n_choices_have_seeds_of_their_own_and_come_in_order(service: Service) -> None:
    service.engine.script = lambda request: [48 + (request.params.seed or 0) % 10, IM_END]
    answer = service.openai().chat.completions.create(model="fake", messages=HI, n=3, seed=4)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [choice.message.content for choice in answer.choices] == ["4", "5", "6"]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 6
    seeds = [request.params.seed for request in service.engine.added]
    assert sorted(seed or 0 for seed in seeds) == [4, 5, 6]
    streamed = frames(service.chat(n=3, seed=4, stream=True))
    texts = ["", "", ""]
    for frame in streamed:
        choice = frame["choices"][0]
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == ["4", "5", "6"]


def test_a_seed_at_the_edge_of_64_bits_wraps(service: Service) -> None:
    assert service.chat(seed=2**63 - 1, n=2).status_code == 200
    seeds = {request.params.seed for request in service.engine.added}
    assert seeds == {2**63 - 1, -(2**63)}


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_cuts_the_text_and_frees_the_request(service: Service, stream: bool) -> None:
    service.engine.script = say("one two three" + " and on" * 400)
    service.engine.delay_s = 0.002
    response = service.chat(stop=["o thr", "zzz"], stream=stream)
    if stream:
        choices = [frame["choices"][0] for frame in frames(response)]
        text = "".join(choice["delta"].get("content", "") for choice in choices)
        last = choices[-1]
    else:
        last = response.json()["choices"][0]
        text = last["message"]["content"]
        # Up to and with the token that completed the stop string: the rest is not paid for.
        assert response.json()["usage"]["completion_tokens"] == len("one two thr")
    assert text == "one tw"
    assert last["finish_reason"] == "stop"
    assert last["stop_reason"] == "o thr"
    service.engine.wait_until(lambda engine: engine.num_open == 0)
    assert len(service.engine.aborted) == 1


def test_a_stop_string_may_stay_in_the_text(service: Service) -> None:
    service.engine.script = say("one two three")
    answer = service.chat(stop="two", include_stop_str_in_output=True).json()
    assert answer["choices"][0]["message"]["content"] == "one two"


def test_a_stop_token_is_named_and_not_shown(service: Service) -> None:
    service.engine.script = say("abcdef")
    choice = service.chat(stop_token_ids=[ord("d")]).json()["choices"][0]
    assert choice["message"]["content"] == "abc"
    assert choice["stop_reason"] == ord("d")
    assert choice["finish_reason"] == "stop"


def test_the_limit_of_tokens_is_a_finish_reason(service: Service) -> None:
    service.engine.script = count_up
    answer = service.openai().chat.completions.create(model="fake", messages=HI, max_tokens=5)
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.content == "01234"


def test_special_tokens_are_shown_on_request(service: Service) -> None:
    service.engine.script = lambda request: [*b"a", END_OF_TEXT, *b"b", IM_END]
    hidden = service.chat().json()["choices"][0]["message"]["content"]
    shown = service.chat(skip_special_tokens=False).json()["choices"][0]["message"]["content"]
    assert hidden == "ab"
    assert shown == "a<|endoftext|>b"


def test_logprobs_have_openais_shape(service: Service) -> None:
    service.engine.script = say("é!")
    client = service.openai()
    answer = client.chat.completions.create(
        model="fake", messages=HI, logprobs=True, top_logprobs=2, max_tokens=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    content = logprobs.content
    assert content is not None
    assert [entry.bytes for entry in content] == [[0xC3], [0xA9], [0x21]]
    assert content[0].token == "bytes:\\xc3"
    assert [top.token for top in content[2].top_logprobs] == ['"', "!"]
    assert content[2].logprob == -1.0
    streamed = frames(service.chat(logprobs=True, top_logprobs=2, max_tokens=3, stream=True))
    again = [
        entry
        for frame in streamed
        for entry in (frame["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert [entry["bytes"] for entry in again] == [[0xC3], [0xA9], [0x21]]


def test_vllms_extensions_reach_the_engine(service: Service) -> None:
    fields = {"top_k": 7, "min_p": 0.1, "repetition_penalty": 1.5, "min_tokens": 2, "priority": 3}
    assert service.chat(**fields, logit_bias={"65": -5}, ignore_eos=True).status_code == 200
    params = service.engine.added[-1].params
    assert {name: getattr(params, name) for name in fields} == fields
    assert params.logit_bias == {65: -5.0}
    assert params.ignore_eos


def test_prompt_logprobs_and_token_ids_on_request(service: Service) -> None:
    answer = service.chat(prompt_logprobs=1, return_token_ids=True, max_tokens=2).json()
    prompt = answer["prompt_token_ids"]
    assert prompt == service.engine.added[-1].prompt_token_ids
    assert answer["prompt_logprobs"][0] is None
    assert len(answer["prompt_logprobs"]) == len(prompt)
    assert str(prompt[1]) in answer["prompt_logprobs"][1]
    assert answer["choices"][0]["token_ids"] == list(b"He")


def test_the_models_defaults_hold_where_the_request_says_nothing(start: Start) -> None:
    service = start(
        sampling_defaults={"temperature": 0.6, "top_k": 20}, eos_token_ids=[END_OF_TEXT]
    )
    service.chat(top_k=5)
    request = service.engine.added[-1]
    assert (request.params.temperature, request.params.top_k) == (0.6, 5)
    assert request.eos_token_ids == [END_OF_TEXT]


def test_unknown_fields_are_named_in_a_warning(service: Service) -> None:
    response = service.chat(metadata={}, **{"weird\r\nname": 1})
    assert response.status_code == 200
    assert response.headers["warning"] == (
        '299 chitu_like "ignored request fields: metadata, (odd name)"'
    )
    assert "warning" not in service.chat(user="me").headers


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"guided_json": {}, "guided_regex": "a"}, "guided_regex"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    service: Service, fields: dict[str, Any], param: str
) -> None:
    response = service.chat(**fields)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "unsupported", param)


@pytest.mark.parametrize(
    "fields",
    [{"tools": []}, {"tool_choice": "none"}, {"response_format": {"type": "text"}}, {"stop": None}],
)
def test_asking_for_nothing_special_is_no_fault(service: Service, fields: dict[str, Any]) -> None:
    assert service.chat(**fields).status_code == 200


def test_the_official_client_gets_typed_errors(service: Service) -> None:
    client = service.openai()
    with pytest.raises(openai.NotFoundError, match="not served here"):
        client.chat.completions.create(model="other", messages=HI)
    with pytest.raises(openai.BadRequestError, match="temperature") as caught:
        client.chat.completions.create(model="fake", messages=HI, temperature=-1)
    assert caught.value.param == "temperature"
    assert client.chat.completions.create(model="fake", messages=HI).choices
