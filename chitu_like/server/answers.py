"""What clients get: OpenAI's objects as types. Fields left UNSET do not appear in the JSON."""

from __future__ import annotations

from typing import TypeAlias

from msgspec import UNSET, Struct, UnsetType


class PromptTokensDetails(Struct, frozen=True):
    """How much of the prompt the prefix cache spared."""

    cached_tokens: int


class Usage(Struct, frozen=True):
    """Tokens of a whole call: each prompt once, the output of every choice."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class PromptLogprob(Struct, frozen=True):
    """vLLM's extension: one token at one prompt position."""

    logprob: float
    rank: int | None
    decoded_token: str


PromptLogprobs: TypeAlias = list[dict[str, PromptLogprob] | None]


class TopLogprob(Struct, frozen=True):
    """One alternative at a position of a chat answer."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(Struct, frozen=True):
    """The chosen token at a position of a chat answer."""

    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct, frozen=True):
    """Log-probabilities of a chat answer or chunk."""

    content: list[TokenLogprob]
    refusal: None = None


class AssistantMessage(Struct, frozen=True):
    """The answer of a chat."""

    content: str
    role: str = "assistant"
    refusal: None = None


class ChatChoice(Struct, frozen=True, kw_only=True):
    """One of n answers."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: str
    stop_reason: str | int | None
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(Struct, frozen=True, kw_only=True):
    """The whole answer of POST /v1/chat/completions."""

    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: None = None
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class ChatDelta(Struct, frozen=True, kw_only=True):
    """What a chunk adds to the message."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChatChunkChoice(Struct, frozen=True, kw_only=True):
    """What a chunk adds to one of n answers."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletionChunk(Struct, frozen=True, kw_only=True):
    """One frame of a chat stream."""

    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    system_fingerprint: None = None
    prompt_token_ids: list[int] | UnsetType = UNSET


class LegacyLogprobs(Struct, frozen=True):
    """Log-probabilities of a completion: four lists over its tokens.

    With echo the prompt's tokens come first, and the first of all has no probability.
    """

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(Struct, frozen=True, kw_only=True):
    """One completion, or what a chunk adds to it."""

    index: int
    text: str
    logprobs: LegacyLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | None
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class Completion(Struct, frozen=True, kw_only=True):
    """The answer of POST /v1/completions, or one frame of its stream."""

    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET
    system_fingerprint: None = None


class ModelCard(Struct, frozen=True, kw_only=True):
    """A model that can be asked."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "chitu_like"
    root: str
    parent: None = None
    max_model_len: int | None


class ModelList(Struct, frozen=True, kw_only=True):
    """GET /v1/models."""

    object: str = "list"
    data: list[ModelCard]


class TokenizeAnswer(Struct, frozen=True, kw_only=True):
    """POST /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeAnswer(Struct, frozen=True):
    """POST /detokenize."""

    prompt: str


class TokenizerInfo(Struct, frozen=True, kw_only=True):
    """GET /tokenizer_info."""

    vocab_size: int
    bos_token_id: int | None
    eos_token_ids: list[int]
    special_tokens: dict[str, str]
    chat_template: str | None
    max_model_len: int | None


class Load(Struct, frozen=True, kw_only=True):
    """GET /load: how busy the service is now.

    Attributes:
        state: loading, ready, draining or failed.
        server_load: calls being answered.
        num_requests_running, num_requests_waiting: on the engines, as of their last step.
        kv_cache_usage: share of KV blocks in use, 0 to 1.
        max_requests_running: requests that can run at once; null while loading.
    """

    state: str
    server_load: int
    num_requests_running: int
    num_requests_waiting: int
    kv_cache_usage: float
    max_requests_running: int | None


class Status(Struct, frozen=True):
    """GET /ready and admin routes."""

    status: str


class Health(Struct, frozen=True, kw_only=True):
    """GET /health.

    Attributes:
        status: ok, or degraded where instances were lost and others serve on.
        instances_up: how many serve.
        instances: how many there were at the start.
    """

    status: str
    instances_up: int
    instances: int


class Version(Struct, frozen=True):
    """GET /version."""

    version: str
