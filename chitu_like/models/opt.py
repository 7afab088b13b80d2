"""OPT (Zhang et al. 2022, arXiv:2205.01068): learned positions, plain MLP, layer norms.

All shapes: 350m normalises behind each block instead of before it, and projects a narrower
embedding in and out.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from chitu_like.attention.base import AttentionBackend, ForwardBatch
from chitu_like.core.model_spec import ModelSpec, OptSpec
from chitu_like.layers.attention import Attention
from chitu_like.layers.embedding import Embedding, LMHead, VocabParallelEmbedding
from chitu_like.layers.linear import (
    ColumnParallelLinear,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)
from chitu_like.layers.norm import LayerNorm
from chitu_like.layers.options import LayerOptions
from chitu_like.models.base import Model, register_model
from chitu_like.models.weight_map import NameTable
from chitu_like.ops.activation import ACTIVATIONS

POSITION_OFFSET = 2  # the first two rows of the position table are never used


class OptAttention(nn.Module):
    """Attention without rotation."""

    def __init__(
        self, spec: ModelSpec, layer_index: int, backend: AttentionBackend, options: LayerOptions
    ) -> None:
        super().__init__()
        hidden = spec.hidden_size
        self.qkv_proj = QKVParallelLinear(
            hidden,
            spec.num_heads,
            spec.num_kv_heads,
            spec.head_dim,
            has_bias=spec.qkv_bias,
            options=options,
        )
        self.o_proj = RowParallelLinear(hidden, hidden, has_bias=spec.o_bias, options=options)
        self.attention = Attention(
            layer_index, scale=spec.head_dim**-0.5, window=None, backend=backend, options=options
        )
        self._head_dim = spec.head_dim

    def forward(self, x: Tensor, batch: ForwardBatch) -> Tensor:
        """X [num_tokens, hidden_size] -> the same shape, fresh."""
        q, k, v = self.qkv_proj(x).unflatten(-1, (-1, self._head_dim)).chunk(3, 1)
        self.attention.store(k, v, batch)
        return self.o_proj(self.attention(q, batch))


class OptLayer(nn.Module):
    """Attention and MLP, the norms before or behind them."""

    def __init__(
        self, spec: ModelSpec, layer_index: int, backend: AttentionBackend, options: LayerOptions
    ) -> None:
        super().__init__()
        opt = opt_of(spec)
        self.self_attn = OptAttention(spec, layer_index, backend, options)
        self.self_attn_layer_norm = _norm(spec, options)
        hidden, inner, has_bias = spec.hidden_size, spec.intermediate_size, spec.mlp_bias
        self.fc1 = ColumnParallelLinear(hidden, inner, has_bias=has_bias, options=options)
        self.fc2 = RowParallelLinear(inner, hidden, has_bias=has_bias, options=options)
        self.final_layer_norm = _norm(spec, options)
        self._is_pre_norm = opt.pre_norm
        self._act = ACTIVATIONS[spec.hidden_act]

    def forward(self, x: Tensor, batch: ForwardBatch) -> Tensor:
        """X [num_tokens, hidden_size], not modified -> the same shape."""
        if self._is_pre_norm:
            x = self.self_attn(self.self_attn_layer_norm(x), batch).add_(x)
            return self._mlp(self.final_layer_norm(x)).add_(x)
        x = self.self_attn_layer_norm(self.self_attn(x, batch).add_(x))
        return self.final_layer_norm(self._mlp(x).add_(x))

    def _mlp(self, x: Tensor) -> Tensor:
        return self.fc2(self._act(self.fc1(x)))


@register_model("OPTForCausalLM")
class OPTForCausalLM(Model):
    """OPT; arguments and methods as Model's."""

    name_table: ClassVar[NameTable] = NameTable(
        prefixes=("model.decoder.", "decoder.", ""),
        parts={
            "q_proj": ("qkv_proj", "q"),
            "k_proj": ("qkv_proj", "k"),
            "v_proj": ("qkv_proj", "v"),
        },
        renames={"out_proj": "o_proj"},
        ignored=(r"(model\.)?decoder\.version",),  # a marker in the first published folders
    )

    def __init__(self, spec: ModelSpec, backend: AttentionBackend, options: LayerOptions) -> None:
        super().__init__(spec, backend, options)
        opt, parallel = opt_of(spec), options.parallel
        width, hidden = opt.word_embed_proj_dim, spec.hidden_size
        is_tied_head = parallel.is_last_stage and spec.tie_word_embeddings
        if parallel.is_first_stage or is_tied_head:
            self.embed_tokens = VocabParallelEmbedding(spec.vocab_size, width, options)
        if parallel.is_first_stage:
            num_positions = spec.max_position_embeddings + POSITION_OFFSET
            self.embed_positions = Embedding(num_positions, hidden, options)
            self.project_in = _projection(width, hidden, options)
        self.layers = nn.ModuleDict(
            {str(index): OptLayer(spec, index, backend, options) for index in self.layer_indices}
        )
        if parallel.is_last_stage:
            self.final_layer_norm = _norm(spec, options) if opt.has_final_norm else None
            self.project_out = _projection(hidden, width, options)
            self.lm_head = LMHead(width, spec.vocab_size, options)
        if is_tied_head:
            self.lm_head.tie(self.embed_tokens)

    def forward(self, batch: ForwardBatch, hidden_states: Tensor | None = None) -> Tensor:
        """See Model."""
        x = self._embed(batch) if hidden_states is None else hidden_states
        for layer in self.layers.values():
            x = layer(x, batch)
        return x

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        """See Model."""
        x = hidden_states
        if self.final_layer_norm is not None:
            x = self.final_layer_norm(x)
        if self.project_out is not None:
            x = self.project_out(x)
        return self.lm_head(x)

    def _embed(self, batch: ForwardBatch) -> Tensor:
        x = self.embed_tokens(batch.input_ids)
        if self.project_in is not None:
            x = self.project_in(x)
        return x.add_(self.embed_positions(batch.positions + POSITION_OFFSET))


def opt_of(spec: ModelSpec) -> OptSpec:
    """The part of the spec that only OPT has."""
    assert spec.opt is not None, f"{spec.architecture} is not OPT"
    return spec.opt


def _norm(spec: ModelSpec, options: LayerOptions) -> LayerNorm:
    has_weights = opt_of(spec).has_norm_weights
    return LayerNorm(spec.hidden_size, spec.norm_eps, has_weights=has_weights, options=options)


def _projection(
    in_features: int, out_features: int, options: LayerOptions
) -> ReplicatedLinear | None:
    if in_features == out_features:
        return None
    return ReplicatedLinear(in_features, out_features, has_bias=False, options=options)
