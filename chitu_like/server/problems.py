"""Errors as HTTP says them: the only translation, so that no trace or path can slip out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import Response

from chitu_like.core.errors import CapacityError, PeerError, RequestError, UnsupportedError
from chitu_like.router.admission import Refused

logger = logging.getLogger(__name__)

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    500: "internal_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}


class ErrorBody(msgspec.Struct, frozen=True):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(msgspec.Struct, frozen=True):
    """The body of every answer that is not a success."""

    error: ErrorBody


class ApiError(Exception):
    """An answer other than success, ready to be sent.

    Args:
        status: HTTP status.
        message: one line for the client.
        param: the request field at fault.
        code: the fault in a word, for programs.
        headers: sent along.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        self.body = ErrorAnswer(
            ErrorBody(
                message=message,
                type=TYPES.get(status, "invalid_request_error"),
                param=param,
                code=code,
            )
        )

    def to_json(self) -> bytes:
        """The JSON object, for a body or a stream frame."""
        return msgspec.json.encode(self.body)

    def to_response(self) -> Response:
        """The whole answer."""
        return Response(
            self.to_json(), self.status, headers=self.headers, media_type="application/json"
        )


def unsupported(field: str, why: str) -> ApiError:
    """The request is sound but asks for what this version cannot do."""
    return ApiError(400, f"{field}: {why}", param=field, code="unsupported")


def context_exceeded(num_tokens: str, max_seq_len: int, param: str) -> ApiError:
    """The prompt, or prompt and output together, are longer than the context."""
    return ApiError(
        400,
        f"{num_tokens}: the context of this service holds {max_seq_len} tokens (prompt + output); "
        "shorten the prompt or lower max_tokens",
        param=param,
        code="context_length_exceeded",
    )


def to_api_error(error: BaseException, request_id: str) -> ApiError:
    """Translate any exception; what nobody foresaw is logged and stays secret."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestError):
        return ApiError(400, str(error), param=error.param, code="invalid_value")
    if isinstance(error, UnsupportedError):
        return ApiError(400, str(error), code="unsupported")
    if isinstance(error, Refused):
        return _unavailable(str(error), error.code, error.retry_after_s)
    if isinstance(error, CapacityError):
        return _unavailable(str(error), "overloaded", 1)
    if isinstance(error, PeerError):
        return _unavailable(str(error), "engine_failed", 30)
    if isinstance(error, HTTPException):  # the routing's own 404 and 405
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
        return ApiError(error.status_code, error.detail, code=code, headers=error.headers)
    if isinstance(error, (TimeoutError, asyncio.TimeoutError)):
        return ApiError(504, "the request's deadline has passed", code="timeout")
    logger.error("internal error in request %s", request_id, exc_info=error)
    return ApiError(
        500, f"internal error; the log has it under request id {request_id}", code="internal_error"
    )


def _unavailable(message: str, code: str, retry_after_s: int) -> ApiError:
    headers = {"Retry-After": str(retry_after_s)}
    return ApiError(503, message, code=code, headers=headers)
