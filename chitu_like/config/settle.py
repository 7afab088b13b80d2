"""What waits for the profile run: num_blocks, and with it max_seq_len and max_reqs.

The leader settles with the least number of blocks over its ranks, and tells every rank.
"""

from dataclasses import replace

from chitu_like.config.resolved import Decision, ResolvedConfig
from chitu_like.core.errors import CapacityError

CPU_MAX_REQS, CUDA_MAX_REQS = 64, 256


def settle(resolved: ResolvedConfig, num_blocks: int) -> ResolvedConfig:
    """Decide max_seq_len and max_reqs from the blocks that there are.

    Args:
        resolved: the outcome of `resolve`.
        num_blocks: KV blocks that fit on every rank (the least over ranks); where the user gave
            infer.num_blocks, that number.

    Returns: `resolved` with num_blocks, max_seq_len and max_reqs decided.
    Raises: CapacityError if a given length or number of requests does not fit.
    """
    infer = resolved.config.infer
    decisions = list(resolved.decisions)
    if infer.num_blocks == "auto" and infer.cache_type == "skew":
        num_blocks = min(num_blocks, most_reqs(resolved))
    if infer.num_blocks == "auto":
        share = f"{infer.memory_utilization:.0%} of the memory"
        reason = f"{num_blocks * resolved.block_size} tokens fit in {share}"
        decisions.append(Decision("infer.num_blocks", str(num_blocks), reason))
    max_seq_len = _max_seq_len(resolved, num_blocks, decisions)
    max_reqs = _max_reqs(resolved, num_blocks, decisions)
    return replace(
        resolved,
        num_blocks=num_blocks,
        max_seq_len=max_seq_len,
        max_reqs=max_reqs,
        decisions=tuple(decisions),
    )


def most_reqs(resolved: ResolvedConfig) -> int:
    """Requests at once that the memory is planned for: as asked, else what is usual."""
    asked = resolved.config.infer.max_reqs
    if asked != "auto":
        return asked
    usual = CPU_MAX_REQS if resolved.device == "cpu" else CUDA_MAX_REQS
    return min(usual, resolved.max_num_batched_tokens)


def _max_seq_len(resolved: ResolvedConfig, num_blocks: int, decisions: list[Decision]) -> int:
    infer, size = resolved.config.infer, resolved.block_size
    held = num_blocks * size
    asked = infer.max_seq_len
    if held < (1 if asked == "auto" else asked):
        raise CapacityError(
            f"the KV cache holds {held} tokens but one request may have {resolved.max_seq_len} "
            "(infer.max_seq_len): lower it, or raise infer.memory_utilization or infer.num_blocks"
        )
    if asked != "auto":
        return asked
    reason = "all that the KV cache holds"
    if held >= resolved.max_seq_len:
        is_cut = infer.cache_type == "skew"
        held, reason = resolved.max_seq_len, "a skew slot" if is_cut else "the model's limit"
    decisions.append(Decision("infer.max_seq_len", str(held), reason))
    return held


def _max_reqs(resolved: ResolvedConfig, num_blocks: int, decisions: list[Decision]) -> int:
    room = num_blocks  # a request holds one block at least; with the skew cache just one
    asked = resolved.config.infer.max_reqs
    if asked != "auto":
        if asked > room:
            raise CapacityError(
                f"infer.max_reqs={asked} but the KV cache has room for {room} requests: use at "
                f"most {room}, lower infer.max_seq_len or raise infer.num_blocks"
            )
        return asked
    max_reqs = min(most_reqs(resolved), room)
    reason = f"usual on {resolved.device}"
    if max_reqs < (CPU_MAX_REQS if resolved.device == "cpu" else CUDA_MAX_REQS):
        reason = "as many as fit the KV cache and scheduler.max_num_batched_tokens"
    decisions.append(Decision("infer.max_reqs", str(max_reqs), reason))
    return max_reqs
