"""ModelSpec reads real config files in both spellings, and says what is wrong with broken ones."""

import json
import math
from pathlib import Path

import pytest

from chitu_like.core.errors import CheckpointError, UnsupportedError
from chitu_like.core.model_spec import ModelSpec

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 200,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
}


def read(**changes: object) -> ModelSpec:
    return ModelSpec.from_hf_config({**LLAMA, **changes})


def qwen2(**changes: object) -> ModelSpec:
    return read(architectures=["Qwen2ForCausalLM"], num_key_value_heads=2, **changes)


# Published sizes. Sources: the models' own config files, as far as they decide the size.
SIZES = {
    "Llama-2-7B": (LLAMA, 32000, 4096, 32, 32, 32, 11008, {}, 6_738_415_616),
    "Llama-3.1-8B": (LLAMA, 128256, 4096, 32, 32, 8, 14336, {}, 8_030_261_248),
    "Qwen2.5-0.5B": (
        {"architectures": ["Qwen2ForCausalLM"]},
        *(151936, 896, 24, 14, 2, 4864),
        {"tie_word_embeddings": True},
        494_032_768,
    ),
    "Qwen3-0.6B": (
        {"architectures": ["Qwen3ForCausalLM"]},
        *(151936, 1024, 28, 16, 8, 3072),
        {"tie_word_embeddings": True, "head_dim": 128},
        596_049_920,
    ),
    "GLM-4-9B": (
        {"architectures": ["GlmForCausalLM"]},
        *(151552, 4096, 40, 32, 2, 13696),
        {"head_dim": 128},
        9_399_951_360,
    ),
    "OPT-125M": (
        {"architectures": ["OPTForCausalLM"], "ffn_dim": 3072},
        *(50272, 768, 12, 12, 12, 3072),
        {},
        125_239_296,
    ),
}


@pytest.mark.parametrize("name", SIZES)
def test_num_parameters_is_the_published_size(name: str) -> None:
    base, vocab, hidden, layers, heads, kv_heads, inner, extra, size = SIZES[name]
    config = {
        **base,
        "vocab_size": vocab,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": inner,
        **extra,
    }
    assert ModelSpec.from_hf_config(config).num_parameters() == size


def test_kv_bytes_count_keys_and_values_of_all_layers() -> None:
    assert read(num_key_value_heads=2).kv_bytes_per_token(2) == 2 * 2 * 2 * 16 * 2


def test_old_and_new_spellings_read_alike() -> None:
    scaling = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    old = read(
        rope_theta=500000.0,
        rope_scaling={"type": "llama3", **scaling},
        torch_dtype="bfloat16",
    )
    new = read(
        rope_parameters={"rope_type": "llama3", "rope_theta": 500000.0, **scaling},
        dtype="bfloat16",
    )
    assert old == new
    assert old.rope is not None
    assert (old.rope.kind, old.rope.theta, old.rope.factor) == ("llama3", 500000.0, 8.0)
    assert old.dtype == "bfloat16"


def test_partial_rotary_factor_is_found_in_either_place() -> None:
    outside = read(architectures=["GlmForCausalLM"], head_dim=16, num_key_value_heads=2)
    inside = read(
        architectures=["GlmForCausalLM"],
        head_dim=16,
        num_key_value_heads=2,
        rope_parameters={"rope_theta": 10000.0, "partial_rotary_factor": 0.25},
    )
    assert outside.rope is not None
    assert inside.rope is not None
    assert (outside.rope.rotary_dim, inside.rope.rotary_dim) == (8, 4)
    assert outside.rope.interleaved


def test_yarn_derives_its_attention_factor() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    spec = read(rope_scaling=yarn, max_position_embeddings=32)
    assert spec.rope is not None
    assert spec.rope.attention_factor == pytest.approx(0.1 * math.log(4) + 1)
    assert spec.max_seq_len == 128
    assert read(rope_scaling={**yarn, "attention_factor": 0.5}).rope.attention_factor == 0.5  # type: ignore[union-attr]


def test_max_seq_len_does_not_apply_the_factor_twice() -> None:
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    assert read(rope_scaling=yarn, max_position_embeddings=128).max_seq_len == 128
    assert read(max_position_embeddings=77).max_seq_len == 77


def test_windows_follow_the_family() -> None:
    mistral = {"architectures": ["MistralForCausalLM"], "num_key_value_heads": 2}
    assert read(**mistral, sliding_window=8).layer_windows == (8, 8)
    assert read(**mistral, sliding_window=None).layer_windows == (None, None)
    assert read(**mistral).layer_windows == (4096, 4096)
    assert qwen2(sliding_window=8).layer_windows == (None, None)
    on = {"use_sliding_window": True, "sliding_window": 8}
    assert qwen2(**on, max_window_layers=1).layer_windows == (None, 8)
    assert qwen2(**on, max_window_layers=0).layer_windows == (8, 8)
    assert qwen2(use_sliding_window=True, sliding_window=None).layer_windows == (None, None)
    kinds = ["sliding_attention", "full_attention"]
    assert qwen2(**on, layer_types=kinds).layer_windows == (8, None)


def test_opt_has_its_own_shape() -> None:
    spec = read(
        architectures=["OPTForCausalLM"], ffn_dim=96, word_embed_proj_dim=32,
        do_layer_norm_before=False, eos_token_id=[2, 3],
    )  # fmt: skip
    assert spec.opt is not None
    assert spec.opt.word_embed_proj_dim == 32
    assert not spec.opt.has_final_norm
    assert spec.rope is None
    assert spec.tie_word_embeddings
    assert spec.eos_token_ids == (2, 3)


def test_metas_params_file_is_read(tmp_path: Path) -> None:
    params = {
        "dim": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 8, "vocab_size": 128256,
        "ffn_dim_multiplier": 1.3, "multiple_of": 1024, "norm_eps": 1e-05,
        "rope_theta": 500000.0, "use_scaled_rope": True,
    }  # fmt: skip
    (tmp_path / "original").mkdir()
    (tmp_path / "original" / "params.json").write_text(json.dumps(params))
    spec = ModelSpec.from_folder(tmp_path)
    assert spec == ModelSpec.from_folder(tmp_path / "original")
    assert spec.num_parameters() == 8_030_261_248
    assert spec.intermediate_size == 14336
    assert spec.max_seq_len == 131072
    assert spec.rope is not None
    assert spec.rope.factor == 8.0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "64"}, "hidden_size='64'"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000"),
        ({"num_key_value_heads": 3}, "num_key_value_heads=3"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings=1"),
        ({"rope_scaling": {"type": "linear"}}, "factor is missing"),
        ({"rope_scaling": []}, r"rope_parameters=\[\]"),
        ({"torch_dtype": "int8"}, "torch_dtype='int8'"),
        ({"rms_norm_eps": math.nan}, "rms_norm_eps=nan"),
        ({"eos_token_id": "end"}, "eos_token_id='end'"),
    ],
)
def test_a_broken_key_is_named_in_one_line(changes: dict[str, object], said: str) -> None:
    with pytest.raises(CheckpointError, match=said) as caught:
        read(**changes)
    assert "config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_kinds_list_the_known_ones() -> None:
    with pytest.raises(UnsupportedError, match=r"DeepseekV3ForCausalLM.*LlamaForCausalLM"):
        read(architectures=["DeepseekV3ForCausalLM"])
    with pytest.raises(UnsupportedError, match=r"longrope.*yarn"):
        read(rope_scaling={"type": "longrope", "factor": 2.0})
    with pytest.raises(UnsupportedError, match=r"mish.*silu"):
        read(hidden_act="mish")


def test_architecture_falls_back_to_the_model_type() -> None:
    config = {**LLAMA, "architectures": None, "model_type": "mistral", "num_key_value_heads": 2}
    assert ModelSpec.from_hf_config(config).architecture == "MistralForCausalLM"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": ' * 100000])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        ModelSpec.from_folder(tmp_path)


def test_a_folder_without_a_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        ModelSpec.from_folder(tmp_path)
