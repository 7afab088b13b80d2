"""What stands before every route: a request id, keys, and the last translation of errors."""

from __future__ import annotations

import hashlib
import hmac
import uuid
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chitu_like.server.problems import ApiError, to_api_error
from chitu_like.server.service import Service

GUARDED = ("/v1/", "/tokenize", "/detokenize", "/tokenizer_info")
ADMIN = "/admin/"
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
}


class KeyRing:
    """Bearer keys, compared in a time that tells nothing about them.

    Args:
        keys: the keys that open; none: nothing does.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    @property
    def is_empty(self) -> bool:
        """Whether there is no key at all."""
        return not self._digests

    def opens(self, authorization: str) -> bool:
        """Whether an Authorization header carries one of the keys."""
        scheme, _, key = authorization.partition(" ")
        given = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        # Every key is compared, whichever fits: the time does not say which.
        fits = [hmac.compare_digest(given, digest) for digest in self._digests]
        return scheme.lower() == "bearer" and any(fits)


class Gate:
    """The ASGI application: checks, hands on to the routes, and answers what they raise.

    Args:
        app: the routes.
        service: handed to them with each request.
        api_keys: for the routes that cost something; none: they are open.
        admin_api_key: for /admin; None: there is no /admin.
    """

    def __init__(
        self,
        app: ASGIApp,
        service: Service,
        *,
        api_keys: Sequence[str],
        admin_api_key: str | None,
    ) -> None:
        self._app = app
        self._service = service
        self._keys = KeyRing(api_keys)
        self._admin_keys = KeyRing([] if admin_api_key is None else [admin_api_key])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            return
        request_id = uuid.uuid4().hex
        scope["state"] = {"request_id": request_id, "service": self._service}
        scope["app"] = self._app  # routes then raise their 404 and 405 instead of answering
        has_begun = False

        async def send_marked(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self._check(scope["path"], Headers(scope=scope).get("authorization", ""))
            await self._app(scope, receive, send_marked)
        except Exception as error:
            answer = to_api_error(error, request_id)
            if not has_begun:
                await answer.to_response()(scope, receive, send_marked)

    def _check(self, path: str, authorization: str) -> None:
        """Raise ApiError where the key is missing."""
        if path.startswith(ADMIN):
            if self._admin_keys.is_empty:
                raise ApiError(404, "admin routes are off (serve.admin_api_key)", code="not_found")
            needed = self._admin_keys
        elif path.startswith(GUARDED) and not self._keys.is_empty:
            needed = self._keys
        else:
            return
        if not needed.opens(authorization):
            raise ApiError(
                401,
                "send a valid key: Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
