"""The prompts of a file: one a line, or a JSON object a line. A bad line becomes its own error."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal, TypeAlias

from chitu_like.core.errors import ConfigError, RequestError
from chitu_like.core.sampling_params import SamplingParams

FileFormat: TypeAlias = Literal["auto", "text", "jsonl"]
# An answer is one text and its token ids: for more there is LLM.generate.
SAMPLING_FIELDS = frozenset(field.name for field in fields(SamplingParams)) - {
    "n",
    "logprobs",
    "prompt_logprobs",
}
OWN_FIELDS = frozenset({"prompt", "messages", "id"})


@dataclass(frozen=True, kw_only=True)
class PromptLine:
    """One line of the input.

    Attributes:
        line: its number in the file, from 1.
        prompt: text or token ids, where it has one.
        messages: a conversation, where it has one.
        sampling: fields of SamplingParams that the line sets.
        id: whatever the line calls itself; handed through.
        error: why the line cannot be answered; then there is neither prompt nor messages.
    """

    line: int
    prompt: str | list[int] | None = None
    messages: list[dict[str, object]] | None = None
    sampling: dict[str, object] | None = None
    id: object = None
    error: str | None = None


def read_prompts(
    path: str, file_format: FileFormat = "auto", *, as_chat: bool = False
) -> list[PromptLine]:
    """Read a file of prompts; empty lines are skipped.

    Args:
        path: the file; "-": standard input.
        file_format: auto: JSON lines if the first line that is not empty begins with a brace.
        as_chat: a prompt that is a text is what a user says, not a text to go on with.

    Raises: ConfigError if the file cannot be read. A line at fault raises nothing: it has `error`.
    """
    lines = [(number, line) for number, line in enumerate(_read_lines(path), 1) if line.strip()]
    if file_format == "auto":
        is_json = bool(lines) and lines[0][1].lstrip().startswith(b"{")
        file_format = "jsonl" if is_json else "text"
    parsed = [_parse(number, line, is_json=file_format == "jsonl") for number, line in lines]
    return [_as_chat(line) for line in parsed] if as_chat else parsed


def _as_chat(line: PromptLine) -> PromptLine:
    if not isinstance(line.prompt, str):
        return line
    return replace(line, prompt=None, messages=[{"role": "user", "content": line.prompt}])


def _read_lines(path: str) -> list[bytes]:
    try:
        content = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"--input {path}: cannot be read: {error.strerror}") from None
    return content.removeprefix(b"\xef\xbb\xbf").split(b"\n")


def _parse(number: int, line: bytes, *, is_json: bool) -> PromptLine:
    try:
        text = line.rstrip(b"\r").decode()
        return _parse_json(number, text) if is_json else PromptLine(line=number, prompt=text)
    except UnicodeDecodeError as error:
        return PromptLine(line=number, error=f"byte {error.start + 1} is not UTF-8")
    except (ValueError, RecursionError) as error:
        return PromptLine(line=number, error=" ".join(str(error).split()) or "not JSON")


def _parse_json(number: int, text: str) -> PromptLine:
    """Raises: ValueError (JSON's or RequestError) with a sentence for the line's answer."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise RequestError(f"not JSON: {error}") from None
    if not isinstance(found, dict):
        raise RequestError('not a JSON object: write {"prompt": ...} or {"messages": [...]}')
    unknown = sorted(set(found) - SAMPLING_FIELDS - OWN_FIELDS)
    if unknown:
        known = ", ".join(sorted(SAMPLING_FIELDS | OWN_FIELDS))
        raise RequestError(f"unknown field {unknown[0]!r}: use {known}")
    if ("prompt" in found) == ("messages" in found):
        raise RequestError('give one of "prompt" and "messages"')
    sampling = {name: value for name, value in found.items() if name in SAMPLING_FIELDS}
    return PromptLine(
        line=number,
        prompt=_check_prompt(found["prompt"]) if "prompt" in found else None,
        messages=_check_messages(found["messages"]) if "messages" in found else None,
        sampling=sampling,
        id=found.get("id"),
    )


def _check_prompt(prompt: object) -> str | list[int]:
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and all(type(token) is int for token in prompt):
        return prompt
    raise RequestError('"prompt" must be a text or a list of token ids')


def _check_messages(messages: object) -> list[dict[str, object]]:
    if not isinstance(messages, list) or not messages:
        raise RequestError('"messages" must be a list of {"role": ..., "content": ...}')
    for message in messages:
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            raise RequestError('each of "messages" needs a "role" and a "content"')
    return messages
