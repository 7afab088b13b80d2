"""Routes that tell how the service is: models, health, load, metrics, version; and the admin's."""

from __future__ import annotations

from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from chitu_like import __version__
from chitu_like.core.errors import PeerError
from chitu_like.router.admission import Refused
from chitu_like.router.router import RouterState
from chitu_like.server.answers import Health, Load, ModelCard, ModelList, Status, Version
from chitu_like.server.respond import json_response
from chitu_like.server.service import Service, service_of


async def list_models(request: Request) -> Response:
    """Name the one model that is served."""
    return json_response(ModelList(data=[_card(service_of(request))]))


async def show_model(request: Request) -> Response:
    """Describe one model."""
    service = service_of(request)
    service.check_model(request.path_params["model"])
    return json_response(_card(service))


async def health(request: Request) -> Response:
    """Say whether work gets done: 503 while loading, after a failure, and with work but no step.

    It does while one instance is left; the answer says `degraded` then.
    """
    service = service_of(request)
    _check_alive(service)
    if service.router.state is RouterState.LOADING or not service.is_loaded:
        raise Refused("the model is still loading", code="loading", retry_after_s=5)
    instances = service.router.instances
    num_up = sum(instance.is_up for instance in instances)
    word = "ok" if num_up == len(instances) else "degraded"
    return json_response(Health(status=word, instances_up=num_up, instances=len(instances)))


async def ready(request: Request) -> Response:
    """Say whether a new request would be taken: also 503 while draining.

    True once all instances are ready: before, the few that are would take the load of all.
    """
    service = service_of(request)
    _check_alive(service)
    service.check_ready()
    return json_response(Status("ready"))


async def load(request: Request) -> Response:
    """How busy the service is."""
    service = service_of(request)
    router = service.router
    stats, info = router.stats, router.info
    is_loading = router.state is RouterState.READY and not service.is_loaded
    return json_response(
        Load(
            state="loading" if is_loading else router.state.value,
            server_load=router.num_open,
            num_requests_running=stats.num_running,
            num_requests_waiting=stats.num_waiting,
            kv_cache_usage=stats.kv_usage,
            max_requests_running=None if info is None else info.max_reqs,
        ),
        headers={"Cache-Control": "no-store"},
    )


async def metrics(request: Request) -> Response:
    """The page Prometheus scrapes."""
    return Response(service_of(request).metrics.render(), media_type=CONTENT_TYPE_LATEST)


async def version(request: Request) -> Response:
    """Name the version of chitu_like."""
    return json_response(Version(__version__))


async def drain(request: Request) -> Response:
    """Take no new request, finish the open ones, then end the service."""
    service_of(request).router.drain()
    return json_response(Status("draining"))


def _check_alive(service: Service) -> None:
    if service.router.failure is not None:
        raise PeerError("the engine has failed; the service is going down")
    silent_s = service.router.seconds_without_progress()
    if silent_s > service.stall_timeout_s:
        raise PeerError(f"work is waiting and no step was made for {silent_s:.0f} s")


def _card(service: Service) -> ModelCard:
    info = service.router.info
    return ModelCard(
        id=service.model_name,
        created=service.started_s,
        root=service.model_name,
        max_model_len=None if info is None else info.max_seq_len,
    )
