"""Meta's params.json of Llama 3 in the words of a Hugging Face config.json."""

from __future__ import annotations

from chitu_like.core.config_reader import ConfigReader
from chitu_like.core.errors import UnsupportedError

LLAMA3_VOCAB_SIZE = 128_256
_LLAMA3_EOS = [128_001, 128_008, 128_009]  # end of text, end of message, end of turn
_LLAMA3_BOS = 128_000


def to_hf_config(params: ConfigReader) -> dict[str, object]:
    """Translate the keys that Meta's reference code reads.

    The MLP's width is not stated but derived as the reference code derives it. The scaling factor
    of long contexts is not stated either: 8 for Llama 3.1, 32 for the 1B and 3B of Llama 3.2,
    which are the only ones narrower than 4096.

    Raises: CheckpointError naming the key; UnsupportedError for a vocabulary not Llama 3's.
    """
    vocab_size = params.find("vocab_size")
    if vocab_size != LLAMA3_VOCAB_SIZE:
        raise UnsupportedError(
            f"{params.source}: vocab_size={vocab_size} is not Llama 3's {LLAMA3_VOCAB_SIZE}: "
            "use the Hugging Face folder of this model (models.ckpt_dir)"
        )
    dim = params.integer("dim")
    num_heads = params.integer("n_heads")
    is_scaled = params.flag("use_scaled_rope", default=False)
    config: dict[str, object] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": dim,
        "num_hidden_layers": params.integer("n_layers"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": params.integer("n_kv_heads", default=num_heads),
        "intermediate_size": _intermediate_size(params, dim),
        "rms_norm_eps": params.number("norm_eps", default=1e-5),
        "rope_theta": params.number("rope_theta", default=500_000.0),
        "max_position_embeddings": 131_072 if is_scaled else 8192,
        "dtype": "bfloat16",
        "bos_token_id": _LLAMA3_BOS,
        "eos_token_id": _LLAMA3_EOS,
    }
    if is_scaled:
        config["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": params.number("rope_scaling_factor", default=8.0 if dim >= 4096 else 32.0),
            "low_freq_factor": 1.0,
            "high_freq_factor": params.number("rope_high_freq_factor", default=4.0),
            "original_max_position_embeddings": 8192,
        }
    return config


def _intermediate_size(params: ConfigReader, dim: int) -> int:
    """Two thirds of 4 * dim, scaled, rounded up to a multiple."""
    inner = int(2 * 4 * dim / 3)
    inner = int(params.number("ffn_dim_multiplier", default=1.0) * inner)
    multiple = params.integer("multiple_of", default=256)
    return multiple * ((inner + multiple - 1) // multiple)
