"""Which running requests may take part in the next batch, with any number of pipeline stages.

With P stages, P batches are computed at a time. A token that the last stage samples reaches the first
one P batches later, so the running requests part into P micro-batches by themselves; a prompt's chunks
wait for no token and follow each other in consecutive batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from chitu_like.core.request import Request

LEAST_PREFILL_SHARE = 256
"""Prompt tokens that no batch is denied: reading the weights alone takes as long as computing these."""


def ready_requests(running: Sequence[Request], *, step_id: int, num_stages: int) -> list[Request]:
    """Those that can be part of the next batch, in the order given.

    A request's next token must be known here, or have been sampled so long ago that the first stage
    gets it in time. An executor holds num_stages batches, and one more with overlap; so at most two
    tokens of a request are on their way at once, and an end of text costs at most one in vain.

    Of the decodes no more than a stage's share, so that the micro-batches stay even while requests
    come and go; who is left out is ready for the batch after it.

    Args:
        running: in policy order.
        step_id: of the next batch.
        num_stages: pipeline stages.
    """
    ready = [  # asked for every request in every step, so written out
        r
        for r in running
        if r.num_in_flight <= num_stages
        and (not r.num_pending or step_id - r.last_step_id >= num_stages)
        and (r.num_computed < r.steady_until or _has_step_to_come(r))
    ]
    if num_stages == 1:
        return ready
    share = -(-sum(map(_has_decode_to_come, running)) // num_stages)
    within_share: list[Request] = []
    for request in ready:
        is_decode = request.num_uncomputed == 1
        if not is_decode or share > 0:
            within_share.append(request)
        share -= is_decode
    return within_share


def prefill_share(running: Iterable[Request], num_arriving: int, num_stages: int) -> int:
    """Prompt tokens that the next batch should have at most.

    Micro-batches of equal length keep all stages busy; one with all the prompt tokens would let the
    others wait. So what there is to prefill is spread over two rounds of the stages, which also
    smooths the arrivals.

    Args:
        running: part of them still in prefill.
        num_arriving: prompt tokens of the waiting requests that may join now.
        num_stages: pipeline stages.
    """
    num_begun = sum(r.num_uncomputed for r in running if r.num_uncomputed > 1)
    return max(LEAST_PREFILL_SHARE, -(-(num_begun + num_arriving) // (2 * num_stages)))


def _has_step_to_come(request: Request) -> bool:
    """Whether something of a running request is left to compute."""
    return _has_tokens_to_come(request) and request.num_uncomputed > 0


def _has_tokens_to_come(request: Request) -> bool:
    """Whether it may sample once more: a finish by length is foreseen."""
    return len(request.output_token_ids) + request.num_pending < request.max_output_tokens


def _has_decode_to_come(request: Request) -> bool:
    """Whether a running request's next batch, as soon as it is ready, is a decode."""
    return request.num_uncomputed == 1 and _has_tokens_to_come(request)
