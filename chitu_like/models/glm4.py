"""GLM-4 (arXiv:2406.12793) and GLM-4-0414.

Both rotate half of each head in neighbouring pairs (the ModelSpec says so), and their checkpoints
hold gate and up already merged. GLM-4-0414 also normalises what attention and MLP give back.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from chitu_like.attention.base import AttentionBackend, ForwardBatch
from chitu_like.core.model_spec import ModelSpec
from chitu_like.layers.norm import RMSNorm
from chitu_like.layers.options import LayerOptions
from chitu_like.models.base import register_model
from chitu_like.models.decoder import DecoderLayer, DecoderModel
from chitu_like.models.weight_map import NameTable
from chitu_like.ops.rotary import Rotation


@register_model("GlmForCausalLM")
class GlmForCausalLM(DecoderModel):
    """The skeleton with GLM's checkpoint names."""

    name_table: ClassVar[NameTable] = NameTable(
        parts={
            "q_proj": ("qkv_proj", "q"),
            "k_proj": ("qkv_proj", "k"),
            "v_proj": ("qkv_proj", "v"),
        }
    )


class Glm4Layer(DecoderLayer):
    """A layer with a norm behind attention and MLP too."""

    norms_reduce: ClassVar[bool] = False  # those norms want the whole sum

    def __init__(
        self, spec: ModelSpec, layer_index: int, backend: AttentionBackend, options: LayerOptions
    ) -> None:
        super().__init__(spec, layer_index, backend, options)
        self.post_self_attn_layernorm = RMSNorm(spec.hidden_size, spec.norm_eps, options)
        self.post_mlp_layernorm = RMSNorm(spec.hidden_size, spec.norm_eps, options)

    def forward(
        self, x: Tensor, residual: Tensor, rotation: Rotation, batch: ForwardBatch
    ) -> Tensor:
        """See DecoderLayer."""
        x = self.self_attn(x, rotation, batch)
        x = self.post_attention_layernorm(self.post_self_attn_layernorm(x), residual)
        return self.post_mlp_layernorm(self.mlp(x))

    def parts(self) -> None:
        """See DecoderLayer: there are two norms more."""
        return None


@register_model("Glm4ForCausalLM")
class Glm4ForCausalLM(GlmForCausalLM):
    """GLM-4-0414."""

    layer_class: ClassVar[type[DecoderLayer]] = Glm4Layer
