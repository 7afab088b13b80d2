"""Llama 1 to 3.x and everything published under its architecture; Mistral.

Llama (Touvron et al. 2023, arXiv:2302.13971) is the skeleton itself. Mistral (Jiang et al. 2023,
arXiv:2310.06825) adds a sliding window, which the ModelSpec says for each layer.
"""

from __future__ import annotations

from chitu_like.models.base import register_model
from chitu_like.models.decoder import DecoderModel


@register_model("LlamaForCausalLM", "LLaMAForCausalLM", "MistralForCausalLM")
class LlamaForCausalLM(DecoderModel):
    """The skeleton as it is."""
