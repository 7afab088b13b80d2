from dataclasses import replace

import pytest
from machines import CPU

from chitu_like.config.architecture import read_model_spec
from chitu_like.config.load import load_config
from chitu_like.config.parallel import check_parallel
from chitu_like.config.resolve import resolve
from chitu_like.core.errors import ConfigError
from chitu_like.core.model_spec import ModelSpec


def spec_of(model: str) -> ModelSpec:
    overrides = [f"models={model}", "models.load_format=dummy"]
    return read_model_spec(load_config(overrides, environ={}).models)


QWEN3_8B = spec_of("qwen3-8b")  # 36 layers, 32 heads on 8, 12288 in the MLP


@pytest.mark.parametrize("tp_size", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("pp_size", [1, 5, 36])
def test_what_divides_passes(tp_size: int, pp_size: int) -> None:
    check_parallel(QWEN3_8B, tp_size, pp_size, name="qwen3-8b")


@pytest.mark.parametrize(
    ("changes", "tp_size", "fault"),
    [
        ({}, 3, "num_key_value_heads=8 of qwen3-8b: use 1, 2, 4, 8, 16 or 32"),
        ({}, 64, "num_attention_heads=32 of qwen3-8b: use 1, 2, 4, 8, 16 or 32"),
        ({"intermediate_size": 100}, 8, "intermediate_size=100 of qwen3-8b: use 1, 2 or 4"),
        ({"num_kv_heads": 32, "intermediate_size": 7}, 2, "intermediate_size=7 of qwen3-8b: use 1"),
        (
            {"num_heads": 6, "num_kv_heads": 2},
            3,
            "num_key_value_heads=2 of qwen3-8b: use 1, 2 or 6",
        ),
    ],
)
def test_what_does_not_divide_is_refused_with_what_does(changes, tp_size, fault) -> None:
    with pytest.raises(ConfigError) as caught:
        check_parallel(replace(QWEN3_8B, **changes), tp_size, 1, name="qwen3-8b")
    assert str(caught.value) == f"tp_size={tp_size} does not divide {fault} (infer.tp_size)"


def test_a_stage_has_a_layer_at_least() -> None:
    with pytest.raises(ConfigError, match=r"pp_size=37 exceeds num_hidden_layers=36 of qwen3-8b"):
        check_parallel(QWEN3_8B, 1, 37, name="qwen3-8b")


def test_a_configuration_is_refused_before_anything_starts() -> None:
    config = load_config(["models=qwen3-8b", "models.load_format=dummy"], environ={})
    cut = replace(config, infer=replace(config.infer, tp_size=3))
    with pytest.raises(ConfigError, match="tp_size=3 does not divide"):
        resolve(cut, CPU, QWEN3_8B)
