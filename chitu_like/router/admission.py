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
    """Index of the instance for each request.

    Requests that share one prompt list (n > 1) go to one instance, for its prefix cache.

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
        if request.prompt_token_ids is not previous:
            index = policy(loads)
            previous = request.prompt_token_ids
        loads[index] = _admit(loads[index], len(request.prompt_token_ids), bounds)
        chosen.append(index)
    return chosen


def _admit(load: InstanceLoad, num_tokens: int, bounds: QueueBounds) -> InstanceLoad:
    """The load with one more request on it, where there is room for it."""
    is_full = load.num_open >= load.max_reqs + bounds.requests
    num_waiting_tokens = load.num_waiting_tokens + num_tokens
    is_behind = load.num_waiting_tokens > 0 and num_waiting_tokens > bounds.tokens
    if is_full or is_behind:
        raise Refused("the service is full", code="overloaded", retry_after_s=1)
    return replace(load, num_open=load.num_open + 1, num_waiting_tokens=num_waiting_tokens)
