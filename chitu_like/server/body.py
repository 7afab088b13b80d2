"""Request bodies: read with a bound, decoded into a type, and what was not understood named."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Generic, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from chitu_like.server.problems import ApiError, unsupported

T = TypeVar("T", bound=msgspec.Struct)

BODY_TIMEOUT_S = 60.0
"""A client that needs longer to send its body is holding a place, not sending."""
MAX_NAMED_FIELDS = 16
"""Unknown fields that the warning header names; the rest is counted."""

_PATH_IN_ERROR = re.compile(r" - at `\$\.?([^`]*)`$")
_SAFE_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")

# Fields that would change the answer and that this version cannot honour, with the values that ask
# for nothing. Refused rather than ignored: a client must not believe it got what it asked for.
_NOTHING: tuple[object, ...] = (None, False, [], {}, "none")
UNSUPPORTED: Mapping[str, tuple[object, ...]] = {
    "tools": _NOTHING,
    "tool_choice": (*_NOTHING, "auto"),
    "functions": _NOTHING,
    "function_call": (*_NOTHING, "auto"),
    "response_format": (*_NOTHING, {"type": "text"}),
    "structured_outputs": _NOTHING,
    "guided_json": _NOTHING,
    "guided_regex": _NOTHING,
    "guided_choice": _NOTHING,
    "guided_grammar": _NOTHING,
    "reasoning": _NOTHING,
    "reasoning_effort": _NOTHING,
    "include_reasoning": (*_NOTHING, True),  # there is none to leave out
    "modalities": (*_NOTHING, ["text"]),
    "audio": _NOTHING,
    "prediction": _NOTHING,
    "web_search_options": _NOTHING,
    "suffix": (*_NOTHING, ""),
    "use_beam_search": _NOTHING,
    "allowed_token_ids": _NOTHING,
    "bad_words": _NOTHING,
    "truncate_prompt_tokens": _NOTHING,
    "prompt_embeds": _NOTHING,
    "logits_processors": _NOTHING,
    "chat_template": _NOTHING,  # a client's program is not run
    "documents": _NOTHING,
}


class Body(msgspec.Struct, Generic[T], frozen=True):
    """A decoded request body.

    Attributes:
        content: the request.
        ignored: names of fields that were not understood.
    """

    content: T
    ignored: list[str]

    def headers(self) -> dict[str, str]:
        """The warning that names what was ignored, if anything was."""
        if not self.ignored:
            return {}
        names = [name if _SAFE_NAME.fullmatch(name) else "(odd name)" for name in self.ignored]
        listed = ", ".join(names[:MAX_NAMED_FIELDS])
        more = len(names) - MAX_NAMED_FIELDS
        rest = f" and {more} more" if more > 0 else ""
        return {"Warning": f'299 chitu_like "ignored request fields: {listed}{rest}"'}


async def read_body(request: Request, kind: type[T], max_bytes: int) -> Body[T]:
    """Read and decode the body of a POST.

    Args:
        request: its body is consumed.
        kind: the type to decode into.
        max_bytes: a longer body is refused before it is kept.

    Raises: ApiError 400 for what is not such a request, 413 for a longer one, 504 for one that
        does not arrive.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        # A web page of another site can post any other type without asking the browser first.
        raise ApiError(400, "send the body as JSON, with the header Content-Type: application/json")
    try:
        content = await asyncio.wait_for(_read_bytes(request, max_bytes), BODY_TIMEOUT_S)
    except (TimeoutError, asyncio.TimeoutError):
        raise ApiError(504, "the request body did not arrive in time", code="timeout") from None
    except ClientDisconnect:
        raise ApiError(400, "the client left before its request was complete") from None
    return decode_body(content, kind)


def decode_body(content: bytes, kind: type[T]) -> Body[T]:
    """Decode a body. Raises: ApiError 400."""
    try:
        fields = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
        for name in UNSUPPORTED.keys() & fields.keys():
            _refuse_unsupported(name, fields[name])
        decoded = msgspec.json.decode(content, type=kind)
    except msgspec.ValidationError as error:
        message, param = _locate(str(error))
        raise ApiError(400, message, param=param, code="invalid_value") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        message = f"the body is not valid JSON: {error}"
        raise ApiError(400, message, code="invalid_json") from None
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply", code="invalid_json") from None
    known = {field.encode_name for field in msgspec.structs.fields(kind)}
    ignored = [name for name in fields if name not in known and name not in UNSUPPORTED]
    return Body(content=decoded, ignored=ignored)


async def _read_bytes(request: Request, max_bytes: int) -> bytes:
    too_long = ApiError(
        413, f"the body is longer than the {max_bytes} bytes this service reads", code="too_large"
    )
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and (len(declared) > 15 or int(declared) > max_bytes):
        raise too_long
    parts: list[bytes] = []
    num_bytes = 0
    async for part in request.stream():
        num_bytes += len(part)
        if num_bytes > max_bytes:
            raise too_long
        parts.append(part)
    return b"".join(parts)


def _refuse_unsupported(name: str, raw: msgspec.Raw) -> None:
    value = msgspec.json.decode(raw)
    # `0 == False`, so values are compared with their types.
    if not any(type(value) is type(empty) and value == empty for empty in UNSUPPORTED[name]):
        raise unsupported(name, "this version does not support it; leave it out")


def _locate(message: str) -> tuple[str, str | None]:
    """A message in the client's words, and the field it is about."""
    found = _PATH_IN_ERROR.search(message)
    if found is None:
        return message, None
    path = found[1]
    param = re.split(r"[.\[]", path)[0] or None
    return f"{path or 'the body'}: {message[: found.start()]}", param
