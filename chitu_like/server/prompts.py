"""Text to prompts, off the event loop: the front end's tokenizer and chat template."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from chitu_like.core.errors import RequestError, UnsupportedError
from chitu_like.server.chat_template import ChatTemplate
from chitu_like.server.problems import ApiError, context_exceeded, unsupported
from chitu_like.server.protocol import MAX_PROMPTS, ChatMessage, ContentPart, TokenIds
from chitu_like.server.tokenizer import Tokenizer

T = TypeVar("T")

NUM_THREADS = 2
"""Encoding releases the GIL; more threads would only take cores from the engine."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt, ready to run; `text` is None where the client sent token ids."""

    text: str | None
    token_ids: list[int]


@dataclass(frozen=True, kw_only=True)
class TemplateOptions:
    """How messages become text; see ChatCompletionRequest."""

    add_generation_prompt: bool | None
    continue_final_message: bool
    template_kwargs: dict[str, object] | None
    add_special_tokens: bool


class PromptMaker:
    """Renders and encodes in threads of its own.

    Args:
        tokenizer: None: only token ids are understood.
        template_source: Jinja text that replaces the tokenizer's own.

    Attributes:
        tokenizer: as given.
        template_source: the template in use, or None.
    """

    def __init__(self, tokenizer: Tokenizer | None, template_source: str | None = None) -> None:
        self.tokenizer = tokenizer
        own = tokenizer.chat_template if tokenizer is not None else None
        self.template_source = template_source or own
        special_tokens = tokenizer.special_tokens if tokenizer is not None else {}
        self._template = (
            ChatTemplate(self.template_source, special_tokens) if self.template_source else None
        )
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="encode")

    @classmethod
    def load(cls, tokenizer_path: str | None, template_source: str | None) -> PromptMaker:
        """Read the tokenizer. Raises: CheckpointError, UnsupportedError."""
        tokenizer = None if tokenizer_path is None else Tokenizer.load(Path(tokenizer_path))
        return cls(tokenizer, template_source)

    def need_tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises: UnsupportedError where there is none."""
        if self.tokenizer is None:
            raise UnsupportedError(
                "this model was loaded without a tokenizer: send token ids to /v1/completions"
            )
        return self.tokenizer

    async def encode(
        self, text: str, *, add_special_tokens: bool, max_tokens: int, param: str = "prompt"
    ) -> Prompt:
        """Encode a text of fewer than `max_tokens` tokens: one is for the output.

        Raises: ApiError where it is longer, UnsupportedError, RequestError.
        """
        tokenizer = self.need_tokenizer()
        return await self._in_thread(
            lambda: _encode(tokenizer, text, add_special_tokens, max_tokens, param)
        )

    async def render(
        self, messages: Sequence[ChatMessage], options: TemplateOptions, *, max_tokens: int
    ) -> Prompt:
        """Render messages with the template and encode them; raises as `encode` does."""
        tokenizer, template = self.need_tokenizer(), self._template
        if template is None:
            raise UnsupportedError("this model has no chat template: use /v1/completions")
        keeps_developer = "developer" in (self.template_source or "")
        plain = [_plain(message, keeps_developer) for message in messages]

        def render_and_encode() -> Prompt:
            text = _render(template, plain, options)
            return _encode(tokenizer, text, options.add_special_tokens, max_tokens, "messages")

        return await self._in_thread(render_and_encode)

    async def decode(self, token_ids: Sequence[int]) -> str:
        """Text of tokens, special ones included. Raises: UnsupportedError."""
        tokenizer = self.need_tokenizer()
        return await self._in_thread(lambda: tokenizer.decode(token_ids, skip_special_tokens=False))

    async def spell(self, token_ids: Sequence[int]) -> list[str]:
        """Text of each token alone. Raises: UnsupportedError."""
        tokenizer = self.need_tokenizer()
        return await self._in_thread(lambda: [tokenizer.token_text(t) for t in token_ids])

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)


def decode_prompts(raw: msgspec.Raw) -> list[str] | list[TokenIds]:
    """Read the prompt field of a completion: one or many, texts or token ids.

    Raises: ApiError 400.
    """
    try:
        prompts = _decode_prompts(bytes(raw).lstrip())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError(
            400,
            "prompt must be a text, a list of texts, a list of token ids or a list of such lists, "
            f"none of them empty: {error}",
            param="prompt",
            code="invalid_value",
        ) from None
    if len(prompts) > MAX_PROMPTS:
        raise RequestError(f"{len(prompts)} prompts: at most {MAX_PROMPTS} in one call", "prompt")
    return prompts


def _decode_prompts(raw: bytes) -> list[str] | list[TokenIds]:
    if raw.startswith(b'"'):
        return [msgspec.json.decode(raw, type=str)]
    first = raw[1:].lstrip()[:1]
    if not raw.startswith(b"[") or first == b"]":
        raise msgspec.ValidationError("it is neither a text nor a list with something in it")
    if first == b'"':
        return msgspec.json.decode(raw, type=list[str])
    if first != b"[":
        return [msgspec.json.decode(raw, type=TokenIds)]
    prompts = msgspec.json.decode(raw, type=list[TokenIds])
    if not all(prompts):
        raise msgspec.ValidationError("one of the lists of token ids is empty")
    return prompts


def _encode(
    tokenizer: Tokenizer, text: str, add_special_tokens: bool, max_tokens: int, param: str
) -> Prompt:
    fewest = tokenizer.fewest_tokens(text)
    if fewest > max_tokens:
        raise context_exceeded(f"the text is at least {fewest} tokens long", max_tokens, param)
    token_ids = tokenizer.encode(text, add_special_tokens=add_special_tokens)
    if len(token_ids) >= max_tokens:
        raise context_exceeded(f"the prompt is {len(token_ids)} tokens long", max_tokens, param)
    if not token_ids:
        raise RequestError(f"{param}: the text makes no token; send at least one", param)
    return Prompt(text=text, token_ids=token_ids)


def _render(
    template: ChatTemplate, messages: list[dict[str, object]], options: TemplateOptions
) -> str:
    continues = options.continue_final_message
    if continues and options.add_generation_prompt:
        raise RequestError(
            "continue_final_message and add_generation_prompt exclude each other: set one",
            "continue_final_message",
        )
    opens = options.add_generation_prompt is not False and not continues
    text = template.render(
        messages, add_generation_prompt=opens, template_kwargs=options.template_kwargs
    )
    return _cut_after(text, str(messages[-1].get("content") or "")) if continues else text


def _cut_after(text: str, content: str) -> str:
    """The text up to the end of the last message's content, which some templates strip."""
    for wanted in (content, content.strip()):
        start = text.rfind(wanted)
        if wanted and start >= 0:
            return text[: start + len(wanted)]
    raise RequestError(
        "continue_final_message: the chat template does not keep the last message's content",
        "continue_final_message",
    )


def _plain(message: ChatMessage, keeps_developer: bool) -> dict[str, object]:
    """A message as templates read it; 'developer' is OpenAI's newer word for 'system'."""
    if message.tool_calls:
        raise unsupported("messages", "tool_calls in a message are not supported by this version")
    is_developer = message.role == "developer" and not keeps_developer
    plain: dict[str, object] = {
        "role": "system" if is_developer else message.role,
        "content": _text_of(message.content),
    }
    optional = {"name": message.name, "tool_call_id": message.tool_call_id}
    return plain | {name: value for name, value in optional.items() if value is not None}


def _text_of(content: str | list[ContentPart] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for part in content:
        if part.type != "text" or part.text is None:
            raise unsupported("messages", f"content parts of type {part.type[:40]!r}: only text")
        texts.append(part.text)
    return "\n".join(texts)
