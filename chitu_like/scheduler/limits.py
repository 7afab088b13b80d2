"""What one instance can hold, and which requests it therefore refuses at once."""

from __future__ import annotations

from dataclasses import dataclass, field

from chitu_like.core.errors import CapacityError
from chitu_like.core.request import Request
from chitu_like.kvcache.block_manager import BlockManager
from chitu_like.scheduler.mlfq import Quanta


@dataclass(frozen=True, kw_only=True)
class SchedulerLimits:
    """What one instance can hold.

    Attributes:
        max_reqs: slots: requests running at once.
        max_seq_len: prompt + output tokens of one request.
        max_num_batched_tokens: tokens of one step.
        prefill_chunk_size: prompt tokens of one step; decodes come on top.
        num_stages: pipeline stages, each computing another step at a time.
        max_queued_requests: open beyond max_reqs; more is refused.
        max_queued_tokens: prompt tokens waiting for a first step; more is refused, but for a single
            request. Both say what the router says, who refuses first: whom it lets in is taken.
        starvation_s: seconds without service after which a request goes before all others.
        quanta: of the queues of the mlfq policy.
    """

    max_reqs: int
    max_seq_len: int
    max_num_batched_tokens: int
    prefill_chunk_size: int
    num_stages: int = 1
    max_queued_requests: int = 4096
    max_queued_tokens: int = 2**24
    starvation_s: float = 60.0
    quanta: Quanta = field(default_factory=Quanta)

    def check(
        self, request: Request, blocks: BlockManager, *, num_open: int, num_queued_tokens: int
    ) -> None:
        """Let a request in.

        Args:
            request: the newcomer.
            blocks: of the instance.
            num_open: requests that run or wait.
            num_queued_tokens: prompt tokens that wait for their first step.

        Raises:
            CapacityError: it can never run here, or the queue is full.
        """
        self.check_size(request, blocks)
        if num_open >= self.max_reqs + self.max_queued_requests:
            raise CapacityError(
                f"{num_open} requests are open (infer.max_reqs={self.max_reqs}, "
                f"scheduler.max_queued_requests={self.max_queued_requests}): try again later"
            )
        queued = num_queued_tokens + request.num_prompt_tokens
        if num_queued_tokens and queued > self.max_queued_tokens:
            raise CapacityError(
                f"{queued} prompt tokens would be waiting "
                f"(scheduler.max_queued_tokens={self.max_queued_tokens}): try again later"
            )

    def check_size(self, request: Request, blocks: BlockManager) -> None:
        """Whether a request could run here if it were alone.

        Raises:
            CapacityError: it is too long.
        """
        num_tokens = request.num_prompt_tokens + request.max_output_tokens
        if num_tokens > self.max_seq_len:
            raise CapacityError(
                f"{request.num_prompt_tokens} prompt tokens and {request.max_output_tokens} output "
                f"tokens exceed infer.max_seq_len={self.max_seq_len}"
            )
        needed = blocks.blocks_for(num_tokens)
        if needed > blocks.num_blocks:
            raise CapacityError(
                f"{request.num_prompt_tokens} prompt tokens and {request.max_output_tokens} output "
                f"tokens need {needed} KV blocks of {blocks.num_blocks} (infer.num_blocks)"
            )
