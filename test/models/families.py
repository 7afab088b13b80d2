"""Tiny random transformers models of every family and kind of rope, made once and kept."""

from __future__ import annotations

import functools

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from chitu_like.core.model_spec import ModelSpec

VOCAB_SIZE = 203
# 6 query heads on 2 key heads of 12: 72 is not the hidden size, and nothing is a power of two.
SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 60,
    "intermediate_size": 84,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 96,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
OPT_SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 60,
    "ffn_dim": 84,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 96,
    "init_std": 0.3,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 24,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24}

FAMILIES: dict[str, dict[str, object]] = {
    "llama": {"model_type": "llama"},
    "llama-head_dim-of-hidden": {"model_type": "llama", "head_dim": None},
    "llama-tied": {"model_type": "llama", "tie_word_embeddings": True},
    "llama-biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama-gelu": {"model_type": "llama", "hidden_act": "gelu_pytorch_tanh"},
    "llama-linear": {"model_type": "llama", "rope_scaling": {"rope_type": "linear", "factor": 2.5}},
    "llama-dynamic": {
        "model_type": "llama",
        "max_position_embeddings": 24,
        "rope_scaling": {"rope_type": "dynamic", "factor": 3.0},
    },
    "llama-llama3": {"model_type": "llama", "rope_theta": 500.0, "rope_scaling": LLAMA3},
    "llama-yarn": {"model_type": "llama", "rope_theta": 500.0, "rope_scaling": YARN},
    "llama-yarn-mscale": {
        "model_type": "llama",
        "rope_scaling": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.1, "truncate": False},
    },
    "llama-yarn-attention_factor": {
        "model_type": "llama",
        "rope_scaling": {**YARN, "attention_factor": 1.3, "beta_fast": 16, "beta_slow": 2},
    },
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "mistral-window": {"model_type": "mistral", "sliding_window": 7},
    "qwen2": {"model_type": "qwen2", "head_dim": None},
    "qwen2-windows": {
        "model_type": "qwen2",
        "head_dim": None,
        "use_sliding_window": True,
        "sliding_window": 5,
        "max_window_layers": 1,
    },
    "qwen3": {"model_type": "qwen3"},
    "qwen3-tied-yarn": {"model_type": "qwen3", "tie_word_embeddings": True, "rope_scaling": YARN},
    "glm": {"model_type": "glm"},
    "glm-partial": {"model_type": "glm", "partial_rotary_factor": 1 / 3},
    "glm4": {"model_type": "glm4", "attention_bias": False},
    "opt": {"model_type": "opt"},
    "opt-post-norm-projected": {
        "model_type": "opt",
        "do_layer_norm_before": False,
        "word_embed_proj_dim": 36,
    },
    "opt-bare": {
        "model_type": "opt",
        "enable_bias": False,
        # transformers 4 cannot initialise norms without weights
        "layer_norm_elementwise_affine": transformers.__version__.startswith("4."),
        "tie_word_embeddings": False,
        "activation_function": "gelu",
    },
}


# Goes into two and four ranks: 4 query heads on 2 key heads, and enough layers for uneven stages.
PARALLEL_SIZES = {"hidden_size": 56, "num_hidden_layers": 4, "num_attention_heads": 4}


def tiny_config(name: str, **other_sizes: int) -> dict[str, object]:
    """The family's config.json as somebody would have written it."""
    changes = FAMILIES[name]
    sizes = OPT_SIZES if changes["model_type"] == "opt" else SIZES
    merged = {**sizes, **changes, **other_sizes}
    return {key: value for key, value in merged.items() if value is not None or key != "head_dim"}


@functools.cache
def twin_of(name: str, **sizes: int) -> tuple[ModelSpec, PreTrainedModel, dict[str, Tensor]]:
    """The spec of what transformers would save, its model in float32, and the weights."""
    torch.manual_seed(sorted(FAMILIES).index(name))
    config = AutoConfig.for_model(**tiny_config(name, **sizes))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:  # biases and norms start as zeros and ones, which hide mistakes
            parameter.data.add_(torch.randn_like(parameter) * 0.2)
    saved = {**config.to_dict(), "architectures": [type(model).__name__]}
    return ModelSpec.from_hf_config(saved), model, model.state_dict()


@torch.inference_mode()
def hf_logits(model: PreTrainedModel, tokens: list[int]) -> Tensor:
    """Logits of every token, the whole sequence at once."""
    # The dynamic rope of transformers remembers the longest text; a short one makes it forget.
    model(torch.tensor([tokens[:1]]), use_cache=False)
    return model(torch.tensor([tokens]), use_cache=False).logits[0]


@torch.inference_mode()
def hf_generate(model: PreTrainedModel, prompt: list[int], num_tokens: int) -> list[int]:
    """Greedy tokens, with transformers' cache; nothing ends them."""
    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        min_new_tokens=num_tokens,
        max_new_tokens=num_tokens,
        eos_token_id=None,
    )
    return out[0, len(prompt) :].tolist()
