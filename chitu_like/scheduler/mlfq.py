"""The queues of the mlfq policy: a request's queue is a function of its prompt and its service so far.

FastServe (Wu et al. 2023, arXiv:2305.05920): queue i gives a quantum of q0 * 2**i. A job skips the
queues whose quantum its prefill would exceed, and sinks by one when its quantum is spent, so short
jobs finish before long ones although nobody knows a length. Time is counted in decode steps, not in
seconds: the same requests are then scheduled in the same way on any machine, and in any replay.

FastServe also swaps the lowest queues out before room is short. Here a preempted request never stays on
the device, and whoever runs takes part in every step, so there is nothing left to swap out early.
"""

from __future__ import annotations

from dataclasses import dataclass

from chitu_like.core.request import Request


@dataclass(frozen=True, kw_only=True)
class Quanta:
    """How service is counted, and how much of it each queue gives.

    Attributes:
        first_steps: q0, decode steps.
        prompt_tokens_per_step: prompt tokens that are computed in the time of a decode step.
    """

    first_steps: int = 8
    prompt_tokens_per_step: int = 64

    def queue(self, request: Request) -> int:
        """Where a request stands, 0 for the first queue; it only grows."""
        quantum = self.first_steps * self.prompt_tokens_per_step  # all in prompt tokens from here
        num_quanta = -(-request.num_prompt_tokens // quantum)
        joined = (num_quanta - 1).bit_length()  # the first with quantum * 2**joined >= prompt
        spent = self._service(request) // (quantum << joined)
        return joined + (spent + 1).bit_length() - 1  # j queues give quantum * (2**j - 1)

    def _service(self, request: Request) -> int:
        """What it was served, in prompt tokens. The first output token comes with the prompt."""
        num_outputs = len(request.output_token_ids) + request.num_pending
        num_decodes = min(max(0, num_outputs - 1), request.num_served_tokens)
        return request.num_served_tokens + num_decodes * (self.prompt_tokens_per_step - 1)
