"""What a rank computes with, and the attention backend that follows from it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from chitu_like.attention.base import AttentionBackend, AttentionSpec, attention_backends
from chitu_like.attention.composed import compose
from chitu_like.attention.triton import DETERMINISTIC_SPLIT, TritonBackend
from chitu_like.core.errors import UnsupportedError
from chitu_like.core.model_spec import ModelSpec
from chitu_like.distributed.parallel_context import ParallelContext
from chitu_like.kvcache.spec import KVCacheSpec
from chitu_like.layers.linear import num_local_kv_heads

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class RunnerOptions:
    """Every value is already decided; nothing here is "auto".

    Attributes:
        spec: the model's shape.
        dtype: of weights, activations and KV cache: bfloat16, float16 or float32.
        device: "cpu", "cuda" or "cuda:<index>".
        max_seq_len: tokens of one request, or the most that `ModelRunner.allocate` may be told.
        attn_type: name of the attention backend, or of two: of prompts + of decodes.
        op_impl: kind of implementation of the ops.
        use_cuda_graph: record steps; the attention backend must allow it.
        deterministic: a token's bits do not depend on what shares its batch; attn_type and op_impl
            are triton then, and a stage has one rank.
        block_size: tokens a KV block.
        max_num_batched_tokens: of one step.
        max_reqs: requests at once, or the most that `ModelRunner.allocate` may be told.
        parallel: which part of the model this rank holds, and whom it computes with.
    """

    spec: ModelSpec
    dtype: str
    device: str
    max_seq_len: int
    attn_type: str = "sdpa"
    op_impl: str = "auto"
    use_cuda_graph: bool = False
    deterministic: bool = False
    block_size: int = 16
    max_num_batched_tokens: int = 2048
    max_reqs: int = 64
    parallel: ParallelContext = field(default_factory=ParallelContext.single)

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch calls it."""
        return DTYPES[self.dtype]

    @property
    def torch_device(self) -> torch.device:
        """`device` as torch calls it."""
        return torch.device(self.device)

    @property
    def layers(self) -> range:
        """GLOBAL indices of this rank's layers."""
        if self.parallel.layers is not None:
            return self.parallel.layers
        return range(self.spec.num_layers)

    @property
    def num_local_kv_heads(self) -> int:
        """Key-value heads of this rank: one at least, shared with neighbours where there are few."""
        return num_local_kv_heads(self.spec.num_kv_heads, self.parallel.tp_size)

    @property
    def kv_spec(self) -> KVCacheSpec:
        """Shape of a KV block on this rank."""
        return KVCacheSpec(
            layers=tuple(self.layers),
            num_kv_heads=self.num_local_kv_heads,
            head_dim=self.spec.head_dim,
            dtype_bytes=self.torch_dtype.itemsize,
            block_size=self.block_size,
        )

    @property
    def attention_spec(self) -> AttentionSpec:
        """What the attention backend must know."""
        return AttentionSpec(
            num_heads=self.spec.num_heads // self.parallel.tp_size,
            num_kv_heads=self.num_local_kv_heads,
            head_dim=self.spec.head_dim,
            windows=tuple(dict.fromkeys(self.spec.layer_windows[i] for i in self.layers)),
            block_size=self.block_size,
            dtype=self.torch_dtype,
            device=self.torch_device,
            max_reqs=self.max_reqs,
        )


def make_backend(options: RunnerOptions) -> AttentionBackend:
    """The attention backend that the options name, or the two, prefill first: "flashinfer+triton".

    Raises: UnsupportedError if one cannot serve the model on this device, saying why.
    """
    first, _, second = options.attn_type.partition("+")
    backend = _named_backend(first, options)
    return compose(backend, _named_backend(second, options)) if second else backend


def _named_backend(name: str, options: RunnerOptions) -> AttentionBackend:
    backend = attention_backends.get(name)
    if reason := backend.supports(options.attention_spec):
        which = "" if name == options.attn_type else f": {name}"
        raise UnsupportedError(
            f"infer.attn_type={options.attn_type}{which} cannot serve this model on "
            f"{options.device}: {reason}: use auto, or ref, which serves every model"
        )
    if options.deterministic:
        assert backend is TritonBackend, f"{name} depends on the batch"
        return TritonBackend(options.attention_spec, split_tokens=DETERMINISTIC_SPLIT)
    return backend(options.attention_spec)
