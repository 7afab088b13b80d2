"""What clients may send: OpenAI's requests with vLLM's extensions, as types.

Types decide shape only; ranges are checked once, in SamplingParams. Every field may be null, which
means the same as leaving it out.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

MAX_PROMPTS = 1024
MAX_MESSAGES = 4096
MAX_DETOKENIZE_IDS = 1 << 20

Role: TypeAlias = Literal["system", "developer", "user", "assistant", "tool"]
TokenId: TypeAlias = Annotated[int, Meta(ge=0, le=2**31 - 1)]
JsonValue: TypeAlias = Annotated[object, Meta(extra_json_schema={"description": "any JSON"})]
TokenIds: TypeAlias = list[TokenId]
PromptJson: TypeAlias = Annotated[
    msgspec.Raw,
    Meta(
        description="A text, a list of texts, a list of token ids, or a list of such lists.",
        extra_json_schema={
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
                {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
                {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "array",
                        "items": {"type": "integer", "minimum": 0},
                        "minItems": 1,
                    },
                },
            ]
        },
    ),
]


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a stream carries beside text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class SamplingFields(msgspec.Struct, frozen=True, kw_only=True):
    """Fields that chat and completion requests share. Meanings as in SamplingParams."""

    model: str | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: TokenIds | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool | None = None
    priority: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None
    add_special_tokens: bool | None = None
    user: str | None = None


class ContentPart(msgspec.Struct, frozen=True):
    """One part of a message; only text parts are understood."""

    type: str
    text: str | None = None


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One turn of a conversation."""

    role: Role
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[dict[str, JsonValue]] | None = None


Messages: TypeAlias = Annotated[list[ChatMessage], Meta(min_length=1, max_length=MAX_MESSAGES)]


class ChatCompletionRequest(SamplingFields, frozen=True, kw_only=True):
    """POST /v1/chat/completions.

    Attributes:
        add_generation_prompt: end with the head of the assistant's turn; null: true.
        continue_final_message: leave the last message open, so that the answer continues it.
        chat_template_kwargs: further variables of the template, such as enable_thinking.
    """

    messages: Messages
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, JsonValue] | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


class CompletionRequest(SamplingFields, frozen=True, kw_only=True):
    """POST /v1/completions."""

    prompt: PromptJson
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """POST /tokenize: either a prompt or messages."""

    prompt: str | None = None
    messages: Messages | None = None
    model: str | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, JsonValue] | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """POST /detokenize."""

    tokens: Annotated[TokenIds, Meta(max_length=MAX_DETOKENIZE_IDS)]
    model: str | None = None
