"""The application: which path leads where."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Request, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from chitu_like.server import answers, protocol, status, tokens
from chitu_like.server.chat import chat_completions
from chitu_like.server.completions import completions
from chitu_like.server.front_end_config import FrontEndConfig
from chitu_like.server.gate import Gate
from chitu_like.server.openapi import Endpoint, describe
from chitu_like.server.pages import page_routes
from chitu_like.server.service import Service

BODY_ERRORS = (400, 401, 404, 413, 503, 504)

ENDPOINTS = (
    Endpoint(
        method="POST",
        path="/v1/chat/completions",
        handler=chat_completions,
        takes=protocol.ChatCompletionRequest,
        gives=answers.ChatCompletion,
        streams=True,
        errors=BODY_ERRORS,
        is_guarded=True,
    ),
    Endpoint(
        method="POST",
        path="/v1/completions",
        handler=completions,
        takes=protocol.CompletionRequest,
        gives=answers.Completion,
        streams=True,
        errors=BODY_ERRORS,
        is_guarded=True,
    ),
    Endpoint(
        method="GET",
        path="/v1/models",
        handler=status.list_models,
        gives=answers.ModelList,
        errors=(401,),
        is_guarded=True,
    ),
    Endpoint(
        method="GET",
        path="/v1/models/{model:path}",
        handler=status.show_model,
        gives=answers.ModelCard,
        errors=(401, 404),
        is_guarded=True,
    ),
    Endpoint(
        method="POST",
        path="/tokenize",
        handler=tokens.tokenize,
        takes=protocol.TokenizeRequest,
        gives=answers.TokenizeAnswer,
        errors=BODY_ERRORS,
        is_guarded=True,
    ),
    Endpoint(
        method="POST",
        path="/detokenize",
        handler=tokens.detokenize,
        takes=protocol.DetokenizeRequest,
        gives=answers.DetokenizeAnswer,
        errors=BODY_ERRORS,
        is_guarded=True,
    ),
    Endpoint(
        method="GET",
        path="/tokenizer_info",
        handler=tokens.tokenizer_info,
        gives=answers.TokenizerInfo,
        errors=(400, 401, 503),
        is_guarded=True,
    ),
    Endpoint(
        method="GET", path="/health", handler=status.health, gives=answers.Health, errors=(503,)
    ),
    Endpoint(
        method="GET", path="/ready", handler=status.ready, gives=answers.Status, errors=(503,)
    ),
    Endpoint(method="GET", path="/load", handler=status.load, gives=answers.Load),
    Endpoint(method="GET", path="/metrics", handler=status.metrics),
    Endpoint(method="GET", path="/version", handler=status.version, gives=answers.Version),
    Endpoint(
        method="POST",
        path="/admin/drain",
        handler=status.drain,
        gives=answers.Status,
        errors=(401, 404),
    ),
)


def build_app(service: Service, config: FrontEndConfig) -> ASGIApp:
    """The whole application behind its gate."""
    document = msgspec.json.encode(describe(ENDPOINTS))

    async def openapi(request: Request) -> Response:
        return Response(document, media_type="application/json")

    routes = [Route(e.path, e.handler, methods=[e.method]) for e in ENDPOINTS]
    routes.append(Route("/openapi.json", openapi, methods=["GET"]))
    # A POST that is redirected for a slash loses its body: 404 says it better.
    router = APIRouter(routes=[*routes, *page_routes()], redirect_slashes=False)
    return Gate(router, service, api_keys=config.api_keys, admin_api_key=config.admin_api_key)
