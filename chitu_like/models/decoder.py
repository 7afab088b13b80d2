"""The skeleton that every dense family shares: embed, layers, norm, head.

A family's file changes a class attribute or overrides a small method; see qwen.py and glm4.py. What
config.json decides (biases, windows, rope, tied heads) is in the ModelSpec and needs no subclass.

Layers sit in a dict by GLOBAL index, so names never change with what this rank holds; the embedding
is on the first stage, norm and head are on the last, and with them a tied embedding. The residual
stream is ONE tensor that the norms add to in place: each adds what the half layer before it gave, so
on a GPU a layer is [add, norm] qkv [head norms, rotation, store] attention o [add, norm] gate_up
[act, mul] down, a kernel each. Few tokens take layers/fused_decode.py instead where that pays.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from chitu_like.attention.base import AttentionBackend, ForwardBatch
from chitu_like.core.model_spec import ModelSpec
from chitu_like.layers.attention import Attention
from chitu_like.layers.embedding import LMHead, VocabParallelEmbedding
from chitu_like.layers.fused_decode import FusedDecode, LayerParts
from chitu_like.layers.linear import QKVParallelLinear, RowParallelLinear
from chitu_like.layers.mlp import GatedMLP
from chitu_like.layers.norm import RMSNorm
from chitu_like.layers.options import LayerOptions
from chitu_like.layers.rotary import RotaryEmbedding
from chitu_like.models.base import Model
from chitu_like.ops.linear_fused import Operand
from chitu_like.ops.rope_store import HeadNorms, qk_norm_rope_store_op
from chitu_like.ops.rotary import Rotation


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
        self._is_interleaved = spec.rope.interleaved
        self._rope_store = qk_norm_rope_store_op.resolve(
            options.device, options.dtype, options.op_impl
        )

    def forward(self, x: Tensor, rotation: Rotation, batch: ForwardBatch) -> Tensor:
        """X [num_tokens, hidden_size] -> the same shape."""
        return self.o_proj(self.attend(self.qkv_proj(x), rotation, batch))

    def attend(self, qkv: Tensor, rotation: Rotation, batch: ForwardBatch) -> Tensor:
        """What stands between the two products.

        Args:
            qkv: [num_tokens, (num_local_heads + 2 * num_local_kv_heads) * head_dim]; may be
                modified.
            rotation: of the batch's positions.
            batch: the batch.

        Returns: [num_tokens, num_local_heads * head_dim].
        """
        q = self._rope_store(
            qkv,
            self.head_norms(),
            rotation,
            self._is_interleaved,
            *self.attention.cache(batch),
            batch.slot_mapping,
        )
        return self.attention(q, batch)

    def head_norms(self) -> HeadNorms | None:
        """Norms of queries and keys before they are rotated; None: none."""
        return None


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
        self, x: Tensor, residual: Tensor, rotation: Rotation, batch: ForwardBatch
    ) -> Tensor:
        """One layer behind its `input_layernorm`, which whoever knows what it adds has called.

        Args:
            x: [num_tokens, hidden_size], the norm of `residual`; not modified.
            residual: the same shape; MODIFIED: holds the stream up to this layer's MLP afterwards.
            rotation: of the batch's positions.
            batch: the batch.

        Returns: the MLP's output, still to be added to `residual`; with options.norms_reduce this
            rank's part of a sum.
        """
        x = self.self_attn(x, rotation, batch)
        return self.mlp(self.post_attention_layernorm(x, residual))

    def parts(self) -> LayerParts | None:
        """What to make a fused layer of; None where a layer is more than these."""
        return LayerParts(
            input_norm=self.input_layernorm,
            qkv_proj=self.self_attn.qkv_proj,
            o_proj=self.self_attn.o_proj,
            post_norm=self.post_attention_layernorm,
            gate_up_proj=self.mlp.gate_up_proj,
            down_proj=self.mlp.down_proj,
        )


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
        self.rotary = RotaryEmbedding(
            spec.rope, dtype=options.dtype, device=options.device, op_impl=options.op_impl
        )
        layers = {
            str(index): self.layer_class(spec, index, backend, options)
            for index in self.layer_indices
        }
        self.layers = nn.ModuleDict(layers)
        self._in_order = list(layers.values())
        self._fuse = partial(FusedDecode.build, activation=spec.hidden_act, options=options)
        self._fused: FusedDecode | None = None
        if parallel.is_last_stage:
            self.norm = RMSNorm(hidden_size, spec.norm_eps, options)
            self.lm_head = LMHead(hidden_size, vocab_size, options)
        if is_tied_head:
            self.lm_head.tie(self.embed_tokens)

    def process_after_load(self) -> None:
        """Find out whether fused layers pay for few tokens; call once, with the final weights."""
        parts = [parts for layer in self._in_order if (parts := layer.parts()) is not None]
        if len(parts) == len(self._in_order):
            self._fused = self._fuse(parts)

    def forward(self, batch: ForwardBatch, hidden_states: Tensor | None = None) -> Tensor:
        """See Model."""
        first, *others = self._in_order
        rotation = self.rotary(batch.positions)
        if hidden_states is None:
            residual, x = self.embed_tokens.with_norm(batch.input_ids, first.input_layernorm)
        else:
            residual, x = hidden_states, first.input_layernorm(hidden_states)
        fused_layers = None if self._fused is None else self._fused.layers_for(len(batch.positions))
        if fused_layers is not None:
            operand = Operand(x)
            for fused, layer in zip(fused_layers, self._in_order, strict=True):
                attend = partial(layer.self_attn.attend, rotation=rotation, batch=batch)
                operand = fused(operand, residual, attend)
            return residual
        delta = first(x, residual, rotation, batch)
        for layer in others:
            delta = layer(layer.input_layernorm(delta, residual), residual, rotation, batch)
        return residual.add_(delta if self._summing is None else self._summing.all_reduce(delta))

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        """See Model."""
        return self.lm_head(self.norm(hidden_states))
