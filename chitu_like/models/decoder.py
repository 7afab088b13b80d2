"""The skeleton that every dense family shares: embed, layers, norm, head.

A family's file changes a class attribute or overrides a small method; see qwen.py and glm.py. What
config.json decides (biases, windows, rope, tied heads) is in the ModelSpec and needs no subclass.

Layers sit in a dict by GLOBAL index, so names never change with what this rank holds; the embedding
is on the first stage, norm and head are on the last, and with them a tied embedding. The residual
stream is ONE tensor that the norms add to in place; a layer gets it together with `delta`, what the
layer before has yet to add.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from torch import Tensor, nn

from chitu_like.attention.base import AttentionBackend, ForwardBatch
from chitu_like.core.model_spec import ModelSpec
from chitu_like.layers.attention import Attention
from chitu_like.layers.embedding import LMHead, VocabParallelEmbedding
from chitu_like.layers.linear import QKVParallelLinear, RowParallelLinear
from chitu_like.layers.mlp import GatedMLP
from chitu_like.layers.norm import RMSNorm
from chitu_like.layers.options import LayerOptions
from chitu_like.layers.rotary import RotaryEmbedding
from chitu_like.models.base import Model
from chitu_like.ops.rotary import Rotation, apply_rotary_op


class SelfAttention(nn.Module):
    """Grouped-query attention with rotary positions.

    Args:
        spec: the model.
        layer_index: global.
        backend: computes attention.
        options: how layers are built.
    """

    def __init__(
        self, spec: ModelSpec, layer_index: int, backend: AttentionBackend, options: LayerOptions
    ) -> None:
        super().__init__()
        assert spec.rope is not None, f"{spec.architecture} has no rotary positions"
        self.qkv_proj = QKVParallelLinear(
            spec.hidden_size,
            spec.num_heads,
            spec.num_kv_heads,
            spec.head_dim,
            has_bias=spec.qkv_bias,
            options=options,
        )
        self.o_proj = RowParallelLinear(
            spec.num_heads * spec.head_dim, spec.hidden_size, has_bias=spec.o_bias, options=options
        )
        self.attention = Attention(
            layer_index,
            scale=spec.head_dim**-0.5,
            window=spec.layer_windows[layer_index],
            backend=backend,
            options=options,
        )
        self.num_q, self.num_kv = self.qkv_proj.num_local_heads, self.qkv_proj.num_local_kv_heads
        self._is_interleaved = spec.rope.interleaved
        self._head_dim = spec.head_dim
        self._apply_rotary = apply_rotary_op.resolve(options.device, options.dtype, options.op_impl)

    def forward(self, x: Tensor, rotation: Rotation, batch: ForwardBatch) -> Tensor:
        """X [num_tokens, hidden_size] -> the same shape."""
        heads = self.qkv_proj(x).unflatten(-1, (-1, self._head_dim))
        q, k = self.rotate(heads[:, : self.num_q + self.num_kv], rotation)
        v = heads[:, self.num_q + self.num_kv :]
        return self.o_proj(self.attention(q, k, v, batch))

    def rotate(self, qk: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        """Queries and keys with their positions.

        Args:
            qk: [num_tokens, num_q + num_kv, head_dim], fresh; may be modified.
            rotation: of these tokens.
        """
        qk = self.apply_rotary(qk, rotation)
        return qk[:, : self.num_q], qk[:, self.num_q :]

    def apply_rotary(self, x: Tensor, rotation: Rotation) -> Tensor:
        """Rotate heads [num_tokens, num_heads, head_dim]; see ops/rotary.py."""
        return self._apply_rotary(x, rotation, self._is_interleaved)


class DecoderLayer(nn.Module):
    """Attention, then MLP, each behind a norm and added to the residual stream.

    Args:
        spec: the model.
        layer_index: global.
        backend: computes attention.
        options: how layers are built.
    """

    attention_class: ClassVar[type[SelfAttention]] = SelfAttention
    norms_reduce: ClassVar[bool] = True
    """Whether attention and MLP go straight into a norm: see LayerOptions."""

    def __init__(
        self, spec: ModelSpec, layer_index: int, backend: AttentionBackend, options: LayerOptions
    ) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(spec.hidden_size, spec.norm_eps, options)
        self.self_attn = self.attention_class(spec, layer_index, backend, options)
        self.post_attention_layernorm = RMSNorm(spec.hidden_size, spec.norm_eps, options)
        self.mlp = GatedMLP(
            spec.hidden_size,
            spec.intermediate_size,
            spec.hidden_act,
            has_bias=spec.mlp_bias,
            options=options,
        )

    def forward(
        self, delta: Tensor | None, residual: Tensor, rotation: Rotation, batch: ForwardBatch
    ) -> Tensor:
        """One layer.

        Args:
            delta: [num_tokens, hidden_size], still to be added to `residual`; None: nothing is.
            residual: the same shape; MODIFIED: holds the stream up to this layer's MLP afterwards.
            rotation: of the batch's positions.
            batch: the batch.

        Returns: the MLP's output, the next layer's delta; with options.norms_reduce both are this
            rank's part of a sum.
        """
        x = self.self_attn(self.enter(delta, residual), rotation, batch)
        return self.mlp(self.post_attention_layernorm(x, residual))

    def enter(self, delta: Tensor | None, residual: Tensor) -> Tensor:
        """Add what is still to be added to the stream, and normalise it for attention."""
        if delta is None:
            return self.input_layernorm(residual)
        return self.input_layernorm(delta, residual)


class DecoderModel(Model):
    """Embedding, layers, norm and head; arguments and methods as Model's."""

    layer_class: ClassVar[type[DecoderLayer]] = DecoderLayer

    def __init__(self, spec: ModelSpec, backend: AttentionBackend, options: LayerOptions) -> None:
        super().__init__(spec, backend, options)
        assert spec.rope is not None, f"{spec.architecture} has no rotary positions"
        vocab_size, hidden_size, parallel = spec.vocab_size, spec.hidden_size, options.parallel
        # A fused kernel is no choice where the plain implementations are asked for.
        norms_reduce = self.layer_class.norms_reduce and options.op_impl != "torch"
        options = replace(options, norms_reduce=norms_reduce and parallel.tp_size > 1)
        self._summing = parallel.tp if options.norms_reduce else None
        is_tied_head = parallel.is_last_stage and spec.tie_word_embeddings
        if parallel.is_first_stage or is_tied_head:
            self.embed_tokens = VocabParallelEmbedding(vocab_size, hidden_size, options)
        self.rotary = RotaryEmbedding(spec.rope, dtype=options.dtype, device=options.device)
        self.layers = nn.ModuleDict(
            {
                str(index): self.layer_class(spec, index, backend, options)
                for index in self.layer_indices
            }
        )
        if parallel.is_last_stage:
            self.norm = RMSNorm(hidden_size, spec.norm_eps, options)
            self.lm_head = LMHead(hidden_size, vocab_size, options)
        if is_tied_head:
            self.lm_head.tie(self.embed_tokens)

    def forward(self, batch: ForwardBatch, hidden_states: Tensor | None = None) -> Tensor:
        """See Model."""
        residual = self.embed_tokens(batch.input_ids) if hidden_states is None else hidden_states
        rotation = self.rotary(batch.positions)
        delta = None
        for layer in self.layers.values():
            delta = layer(delta, residual, rotation, batch)
        if delta is None:
            return residual
        return residual.add_(delta if self._summing is None else self._summing.all_reduce(delta))

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        """See Model."""
        return self.lm_head(self.norm(hidden_states))
