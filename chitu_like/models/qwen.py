"""Qwen2 and Qwen2.5 (arXiv:2412.15115), Qwen3 (arXiv:2505.09388)."""

from __future__ import annotations

from typing import ClassVar

from chitu_like.attention.base import AttentionBackend
from chitu_like.core.model_spec import ModelSpec
from chitu_like.layers.norm import RMSNorm
from chitu_like.layers.options import LayerOptions
from chitu_like.models.base import register_model
from chitu_like.models.decoder import DecoderLayer, DecoderModel, SelfAttention
from chitu_like.ops.rope_store import HeadNorms


@register_model("Qwen2ForCausalLM")
class Qwen2ForCausalLM(DecoderModel):
    """The skeleton with biased queries, keys and values, which the ModelSpec says."""


class Qwen3Attention(SelfAttention):
    """Queries and keys are normalised per head before they are rotated."""

    def __init__(
        self, spec: ModelSpec, layer_index: int, backend: AttentionBackend, options: LayerOptions
    ) -> None:
        super().__init__(spec, layer_index, backend, options)
        self.q_norm = RMSNorm(spec.head_dim, spec.norm_eps, options)
        self.k_norm = RMSNorm(spec.head_dim, spec.norm_eps, options)

    def head_norms(self) -> HeadNorms:
        """See SelfAttention."""
        return HeadNorms(self.q_norm.weight, self.k_norm.weight, self.q_norm.eps)


class Qwen3Layer(DecoderLayer):
    """A layer with Qwen3Attention."""

    attention_class: ClassVar[type[SelfAttention]] = Qwen3Attention


@register_model("Qwen3ForCausalLM")
class Qwen3ForCausalLM(DecoderModel):
    """Qwen3's dense models."""

    layer_class: ClassVar[type[DecoderLayer]] = Qwen3Layer
