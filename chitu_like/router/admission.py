"""Whether a call is let in, and which instance runs each of its requests. All or none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from chitu_like.core.errors import CapacityError, RequestError
from chitu_like.engine.messages import AddRequest
from chitu_like.router.policy import InstanceLoad, Policy

RefusalCode: TypeAlias = Literal["loading", "draining", "overloaded"]


class Refused(CapacityError):
    """The service is sound but takes no request now; the same one may succeed later.

    Args:
        message: one line for the client.
        code: why, in a word.
        retry_after_s: when to ask again.
    """

    def __init__(self, message: str, *, code: RefusalCode, retry_after_s: int) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, kw_only=True)
class QueueBounds:
    """How much may wait on one instance.

    Attributes:
        requests: open requests beyond those it can run at once.
        tokens: prompt tokens of requests that have had no answer yet; a single request may exceed
            it when nothing else waits, so that a large one is not refused for ever.
    """

    requests: int
    tokens: int


def choose_instances(
    loads: Sequence[InstanceLoad],
    requests: Sequence[AddRequest],
    *,
    policy: Policy,
    bounds: QueueBounds,
) -> list[int]:
    """Index of the instance for each request, among those that have room for it.

    Requests that share one prompt list (n > 1) go to one instance, for its prefix cache, as long as
    it has room.

    Raises:
        Refused: there is no room for all of them now.
        RequestError: there never is.
    """
    room = sum(load.max_reqs + bounds.requests for load in loads)
    if len(requests) > room:
        raise RequestError(
            f"{len(requests)} requests in one call: this service holds {room} at once; "
            "lower n or send fewer prompts"
        )
    loads = list(loads)
    chosen: list[int] = []
    previous: list[int] | None = None
    for request in requests:
        open_ones = [i for i, load in enumerate(loads) if _has_room(load, request, bounds)]
        if not open_ones:
            raise Refused("the service is full", code="overloaded", retry_after_s=1)
        if request.prompt_token_ids is not previous or chosen[-1] not in open_ones:
            index = open_ones[policy.choose([loads[i] for i in open_ones], request)]
        previous = request.prompt_token_ids
        loads[index] = _with(loads[index], request)
        chosen.append(index)
    return chosen


def _has_room(load: InstanceLoad, request: AddRequest, bounds: QueueBounds) -> bool:
    num_waiting_tokens = load.num_waiting_tokens + len(request.prompt_token_ids)
    is_behind = load.num_waiting_tokens > 0 and num_waiting_tokens > bounds.tokens
    return load.num_open < load.max_reqs + bounds.requests and not is_behind


def _with(load: InstanceLoad, request: AddRequest) -> InstanceLoad:
    """The load with one more request on it."""
    num_waiting_tokens = load.num_waiting_tokens + len(request.prompt_token_ids)
    return replace(load, num_open=load.num_open + 1, num_waiting_tokens=num_waiting_tokens)
