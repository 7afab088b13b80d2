"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from chitu_like.core.errors import RequestError
from chitu_like.server.answers import (
    AssistantMessage,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    ChatLogprobs,
    Usage,
)
from chitu_like.server.body import read_body
from chitu_like.server.call import Call
from chitu_like.server.choice import ChoiceDelta
from chitu_like.server.logprobs import LogprobSpeller
from chitu_like.server.prompts import TemplateOptions
from chitu_like.server.protocol import ChatCompletionRequest
from chitu_like.server.sampling import sampling_params
from chitu_like.server.service import request_id_of, service_of


async def chat_completions(request: Request) -> Response:
    """Answer a conversation."""
    service = service_of(request)
    with service.admitted() as info:
        body = await read_body(request, ChatCompletionRequest, service.max_body_bytes())
        wanted = body.content
        service.check_model(wanted.model)
        params = sampling_params(
            wanted,
            service.sampling_defaults,
            max_tokens=_max_tokens(wanted),
            logprobs=_num_logprobs(wanted),
        )
        prompt = await service.prompts.render(
            wanted.messages, template_options(wanted), max_tokens=info.max_seq_len
        )
        if params.max_tokens is None:
            params = service.with_context_left(params, prompt)
        call = service.open_call(f"chatcmpl-{request_id_of(request)}", [prompt], params)
        answer = ChatAnswer(call, wanted, service.model_name, service.speller, service.created())
        return await service.respond(request, call, answer, wanted, body.headers())


def template_options(wanted: ChatCompletionRequest) -> TemplateOptions:
    """How the messages of a chat become text: the template writes the special tokens itself."""
    return TemplateOptions(
        add_generation_prompt=wanted.add_generation_prompt,
        continue_final_message=bool(wanted.continue_final_message),
        template_kwargs=wanted.chat_template_kwargs,
        add_special_tokens=bool(wanted.add_special_tokens),
    )


def _max_tokens(wanted: ChatCompletionRequest) -> int | None:
    if wanted.max_completion_tokens is not None:
        return wanted.max_completion_tokens
    return wanted.max_tokens


def _num_logprobs(wanted: ChatCompletionRequest) -> int | None:
    if wanted.logprobs:
        return wanted.top_logprobs or 0
    if wanted.top_logprobs:
        raise RequestError("top_logprobs needs logprobs=true", "top_logprobs")
    return None


class ChatAnswer:
    """Words the answer of a chat; see respond.Answer."""

    def __init__(
        self,
        call: Call,
        wanted: ChatCompletionRequest,
        model_name: str,
        speller: LogprobSpeller,
        created: int,
    ) -> None:
        self._call = call
        self._model_name = model_name
        self._speller = speller
        self._created = created
        self._num_top = (wanted.top_logprobs or 0) if wanted.logprobs else None
        self._wants_prompt_logprobs = wanted.prompt_logprobs is not None
        self._wants_ids = bool(wanted.return_token_ids)
        options = wanted.stream_options
        self._no_usage = None if options is not None and options.include_usage else UNSET

    def whole(self, deltas: Sequence[ChoiceDelta], usage: Usage) -> ChatCompletion:
        """The answer in one piece."""
        by_choice: list[list[ChoiceDelta]] = [[] for _ in self._call.choices]
        for delta in deltas:
            by_choice[delta.index].append(delta)
        first_prompt = [entry for delta in by_choice[0] for entry in delta.prompt_logprobs]
        return ChatCompletion(
            id=self._call.parts.call_id,
            created=self._created,
            model=self._model_name,
            choices=[self._choice(index, own) for index, own in enumerate(by_choice)],
            usage=usage,
            prompt_logprobs=self._speller.prompt(first_prompt)
            if self._wants_prompt_logprobs
            else UNSET,
            prompt_token_ids=self._prompt_token_ids(),
        )

    def opening(self, usage: Usage | None) -> Sequence[ChatCompletionChunk]:
        """Chunks that name the role, one for each choice."""
        roles = [
            ChatChunkChoice(index=choice.index, delta=ChatDelta(role="assistant", content=""))
            for choice in self._call.choices
        ]
        first = self._chunk([roles[0]], usage, self._prompt_token_ids())
        return [first, *(self._chunk([role], usage) for role in roles[1:])]

    def chunk(self, delta: ChoiceDelta, usage: Usage | None) -> ChatCompletionChunk:
        """The chunk that carries a delta."""
        choice = ChatChunkChoice(
            index=delta.index,
            delta=ChatDelta(content=delta.text if delta.text or not delta.finish_reason else UNSET),
            logprobs=self._logprobs([delta]) if delta.token_ids else None,
            finish_reason=delta.finish_reason,
            stop_reason=delta.stop_reason if delta.finish_reason else UNSET,
            token_ids=delta.token_ids if self._wants_ids else UNSET,
        )
        return self._chunk([choice], usage)

    def closing(self, usage: Usage) -> ChatCompletionChunk:
        """The chunk that carries the usage."""
        return self._chunk([], usage)

    def _choice(self, index: int, deltas: Sequence[ChoiceDelta]) -> ChatChoice:
        last = deltas[-1]
        token_ids = [token_id for delta in deltas for token_id in delta.token_ids]
        return ChatChoice(
            index=index,
            message=AssistantMessage("".join(delta.text for delta in deltas)),
            logprobs=self._logprobs(deltas),
            finish_reason=last.finish_reason or "stop",
            stop_reason=last.stop_reason,
            token_ids=token_ids if self._wants_ids else UNSET,
        )

    def _logprobs(self, deltas: Sequence[ChoiceDelta]) -> ChatLogprobs | None:
        if self._num_top is None:
            return None
        entries = [entry for delta in deltas for entry in delta.logprobs]
        return self._speller.chat(entries, self._num_top)

    def _prompt_token_ids(self) -> list[int] | UnsetType:
        return self._call.parts.prompts[0].token_ids if self._wants_ids else UNSET

    def _chunk(
        self,
        choices: list[ChatChunkChoice],
        usage: Usage | None,
        prompt_token_ids: list[int] | UnsetType = UNSET,
    ) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            id=self._call.parts.call_id,
            created=self._created,
            model=self._model_name,
            choices=choices,
            usage=self._no_usage if usage is None else usage,
            prompt_token_ids=prompt_token_ids,
        )
