"""Messages to prompt text, with the chat template that came with the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jinja2 import TemplateError

from chitu_like.core.errors import CheckpointError, RequestError
from chitu_like.server.template_sandbox import compile_template, render_template

MAX_REASON = 300
_RESERVED = frozenset({"messages", "tools", "add_generation_prompt"})


class ChatTemplate:
    """A compiled chat template. Immutable: safe to share between threads.

    Args:
        source: the Jinja text.
        special_tokens: bos_token, eos_token, ... as Tokenizer.special_tokens gives them.
    Raises: CheckpointError if the source is not a template.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        self._special_tokens = dict(special_tokens or {})
        try:
            self._template = compile_template(source)
        except (TemplateError, RecursionError) as error:
            raise CheckpointError(f"the chat template is broken: {_one_line(error)}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, object]] | None = None,
        template_kwargs: Mapping[str, object] | None = None,
    ) -> str:
        """Text of the prompt, special tokens spelled out: encode it without adding more.

        Args:
            messages: role, content (text, or a list of text parts) and what else the template reads.
            add_generation_prompt: end with the head of the assistant's turn.
            tools: JSON schemas of functions.
            template_kwargs: further variables, such as enable_thinking.
        Raises: RequestError if the template refuses the messages or goes beyond its bounds.
        """
        extra = dict(template_kwargs or {})
        if taken := sorted(_RESERVED & extra.keys()):
            raise RequestError(
                f"chat_template_kwargs may not hold {taken[0]!r}: it has a field of its own",
                "chat_template_kwargs",
            )
        variables: dict[str, object] = {
            **self._special_tokens,
            **extra,
            "messages": [_with_plain_content(message) for message in messages],
            "tools": list(tools) if tools else None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return render_template(self._template, variables)
        except Exception as error:  # a template may fail as any program does
            reason = _one_line(error)
            raise RequestError(
                f"the chat template refuses the messages: {reason}", "messages"
            ) from error


def _with_plain_content(message: Mapping[str, object]) -> dict[str, object]:
    """The message with a list of text parts joined: most templates know text alone."""
    content = message.get("content")
    if not isinstance(content, (list, tuple)):
        return dict(message)
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) else part
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise RequestError(
                f"a content part of type {kind!r} cannot be read: this model takes text only",
                "messages",
            )
        texts.append(text)
    return {**message, "content": "\n".join(texts)}


def _one_line(error: BaseException) -> str:
    """The error for a client: what a template says itself in full, of others the first line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:MAX_REASON]
