"""ResolvedConfig: the configuration with every `auto` decided, and the reasons."""

from dataclasses import dataclass
from typing import NamedTuple

from chitu_like.config.schema import DeviceType, Dtype, ServeConfig


class Decision(NamedTuple):
    """What one key became, as printed at start.

    Attributes:
        key: the dotted key that was auto.
        value: what it is now, as users would type it.
        reason: why, in a few words.
    """

    key: str
    value: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class ResolvedConfig:
    """A configuration whose `auto` values are decided; the sections as given stay in `config`.

    Attributes:
        config: as loaded. Where a key could be auto, read the field here instead.
        device: what computes.
        dtype: of weights, activations and the KV cache.
        block_size: tokens of one KV block.
        prefill_chunk_size: prompt tokens per step at most.
        max_num_batched_tokens: tokens of one step at most.
        max_queued_requests: waiting requests at most.
        max_queued_tokens: prompt tokens of waiting requests at most.
        attn_type: name of the attention backend.
        op_impl: which twin of each op computes; the plain one where an op has none of that kind.
        use_cuda_graph: decode steps are captured.
        swap_space_bytes: host memory for preempted requests.
        enable_prefix_caching: blocks of equal prefixes are shared (never with the skew cache).
        num_blocks: KV blocks of the pool; None until the profile run has found them.
        max_reqs: requests running at once; None until `settle`.
        max_seq_len: tokens of one request; before `settle` the model's own limit.
        decisions: every auto, what it became, and why.
    """

    config: ServeConfig
    device: DeviceType
    dtype: Dtype
    block_size: int
    prefill_chunk_size: int
    max_num_batched_tokens: int
    max_queued_requests: int
    max_queued_tokens: int
    attn_type: str
    op_impl: str
    use_cuda_graph: bool
    swap_space_bytes: int
    enable_prefix_caching: bool
    num_blocks: int | None
    max_reqs: int | None
    max_seq_len: int
    decisions: tuple[Decision, ...]
