"""The OpenAPI description, from the same types that decode requests and make answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from inspect import getdoc

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from chitu_like import __version__
from chitu_like.server.problems import ErrorAnswer

Handler = Callable[[Request], Awaitable[Response]]
MEDIA_OF_TEXT = "text/plain"


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One route.

    Attributes:
        method, path: where; a path parameter stands in braces.
        handler: its first docstring line is the summary.
        takes: type of the request body; None: there is none.
        gives: type of a successful answer; None: it is text.
        streams: it answers with server-sent events where the request says stream=true.
        errors: statuses it may answer with beside success.
        is_guarded: it wants a key where keys are set.
    """

    method: str
    path: str
    handler: Handler
    takes: type[msgspec.Struct] | None = None
    gives: type[msgspec.Struct] | None = None
    streams: bool = False
    errors: tuple[int, ...] = ()
    is_guarded: bool = False


def describe(endpoints: Sequence[Endpoint]) -> dict[str, object]:
    """The OpenAPI 3.1 document."""
    types = [kind for e in endpoints for kind in (e.takes, e.gives) if kind is not None]
    types = list(dict.fromkeys([*types, ErrorAnswer]))
    schemas, components = msgspec.json.schema_components(
        types, ref_template="#/components/schemas/{name}"
    )
    refs = dict(zip(types, schemas, strict=True))
    paths: dict[str, dict[str, object]] = {}
    for endpoint in endpoints:
        operation = _operation(endpoint, refs)
        path = endpoint.path.replace(":path}", "}")
        paths.setdefault(path, {})[endpoint.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "chitu_like", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(
    endpoint: Endpoint, refs: dict[type[msgspec.Struct], dict[str, object]]
) -> dict[str, object]:
    summary = (getdoc(endpoint.handler) or "").partition("\n")[0]
    operation: dict[str, object] = {
        "operationId": endpoint.handler.__name__,
        "summary": summary,
        "responses": _responses(endpoint, refs),
    }
    if endpoint.takes is not None:
        content = {"application/json": {"schema": refs[endpoint.takes]}}
        operation["requestBody"] = {"required": True, "content": content}
    if "{" in endpoint.path:
        name = endpoint.path.partition("{")[2].partition("}")[0].partition(":")[0]
        schema = {"type": "string", "minLength": 1}
        operation["parameters"] = [{"name": name, "in": "path", "required": True, "schema": schema}]
    if endpoint.is_guarded:
        operation["security"] = [{}, {"key": []}]
    return operation


def _responses(
    endpoint: Endpoint, refs: dict[type[msgspec.Struct], dict[str, object]]
) -> dict[str, object]:
    if endpoint.gives is None:
        content: dict[str, object] = {MEDIA_OF_TEXT: {"schema": {"type": "string"}}}
    else:
        content = {"application/json": {"schema": refs[endpoint.gives]}}
    if endpoint.streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    responses: dict[str, object] = {"200": {"description": "success", "content": content}}
    error = {"application/json": {"schema": refs[ErrorAnswer]}}
    for status in endpoint.errors:
        responses[str(status)] = {"description": "refused", "content": error}
    return responses
