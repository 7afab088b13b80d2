import json
from pathlib import Path

import pytest

from chitu_like.config.architecture import read_hf_config, read_model_spec
from chitu_like.config.files import model_entries, values_dir
from chitu_like.config.load import load_config
from chitu_like.config.schema import ModelsConfig
from chitu_like.core.errors import CheckpointError, ConfigError

# What transformers builds from the published config.json, tied embeddings counted once; the sizes
# published in a model's card where they are rounded.
NUM_PARAMETERS = {
    "glm-4-9b-chat": 9_399_951_360,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-2-7b": 6_738_415_616,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "Meta-Llama-3-8B-Instruct": 8_030_261_248,
    "Meta-Llama-3-70B-Instruct": 70_553_706_496,
    "mistral-7b": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "opt-125m": 125_239_296,
    "opt-350m": 331_196_416,
    "opt-1.3b": 1_315_758_080,
    "opt-2.7b": 2_651_596_800,
    "opt-6.7b": 6_658_473_984,
    "opt-13b": 12_853_473_280,
    "opt-30b": 29_974_540_288,
    "opt-66b": 65_719_701_504,
    "opt-175b": 174_604_468_224,
    "qwen2-0.5b": 494_032_768,
    "qwen2-1.5b": 1_543_714_304,
    "qwen2-7b": 7_615_616_512,
    "qwen2-72b": 72_706_203_648,
    "Qwen2-7B-Instruct": 7_615_616_512,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
}


def models(*overrides: str) -> ModelsConfig:
    return load_config(overrides, environ={}).models


def test_every_entry_is_counted_below() -> None:
    assert set(model_entries((values_dir(),))) == {*NUM_PARAMETERS, "auto", "tiny-chat"}


@pytest.mark.parametrize(("name", "num_parameters"), NUM_PARAMETERS.items())
def test_an_entry_has_the_size_of_its_model(name: str, num_parameters: int) -> None:
    spec = read_model_spec(models(f"models={name}", "models.load_format=dummy"))
    assert spec.num_parameters() == num_parameters


def checkpoint(folder: Path, **config: object) -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3", **config}))
    return folder


def test_the_checkpoint_is_the_source_and_overrides_win(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, num_hidden_layers=3, rope_scaling={"factor": 2, "type": "linear"})
    chosen = models(
        "models=qwen3-0.6b",
        f"models.ckpt_dir={folder}",
        "models.hf_overrides.rope_scaling.factor=4",
        "models.hf_overrides.vocab_size=100",
    )
    assert read_hf_config(chosen) == {
        "model_type": "qwen3",
        "num_hidden_layers": 3,
        "rope_scaling": {"factor": 4, "type": "linear"},
        "vocab_size": 100,
    }


def test_an_entry_serves_a_folder_without_config_json(tmp_path: Path) -> None:
    config = read_hf_config(models("models=llama-3-8b", f"models.ckpt_dir={tmp_path}"))
    assert config["hidden_size"] == 4096
    with pytest.raises(CheckpointError, match=r"holds no config.json, so models=auto cannot tell"):
        read_hf_config(models("models=auto", f"models.ckpt_dir={tmp_path}"))


def test_metas_layout_is_read_without_an_entry(tmp_path: Path) -> None:
    params = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 128256}
    params |= {"multiple_of": 32, "norm_eps": 1e-5, "rope_theta": 500000.0}
    (tmp_path / "params.json").write_text(json.dumps(params))
    spec = read_model_spec(models("models=auto", f"models.ckpt_dir={tmp_path}"))
    assert (spec.hidden_size, spec.num_layers, spec.num_kv_heads) == (64, 2, 2)


def test_another_models_folder_is_refused(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    with pytest.raises(
        ConfigError, match=r"^models=llama-3-8b is of type llama but .* type qwen3: use"
    ):
        read_hf_config(models("models=llama-3-8b", f"models.ckpt_dir={folder}"))


@pytest.mark.parametrize("text", ["{", "[1]", '"x"', "[" * 100_000, "\xff"])
def test_a_damaged_config_json_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError) as raised:
        read_hf_config(ModelsConfig(name="auto", ckpt_dir=str(tmp_path)))
    assert str(tmp_path / "config.json") in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none does not exist: give a Hugging Face folder$"):
        read_hf_config(ModelsConfig(name="auto", ckpt_dir=str(tmp_path / "none")))
    file = tmp_path / "model.safetensors"
    file.write_text("")
    with pytest.raises(CheckpointError, match="is not a folder"):
        read_hf_config(ModelsConfig(name="auto", ckpt_dir=str(file)))


NEW = {"dtype": "float32", "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
OLD = {"torch_dtype": "float32", "rope_scaling": None, "rope_theta": 5e5}
YARN = "{rope_type:yarn,factor:4.0,original_max_position_embeddings:64}"


@pytest.mark.parametrize("spelled", [NEW, OLD], ids=["new", "old"])
@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("rope_theta=1e6", (1e6, "default", "float32")),
        ("rope_parameters.rope_theta=1e6", (1e6, "default", "float32")),
        (f"rope_scaling={YARN}", (5e5, "yarn", "float32")),
        (f"rope_scaling={YARN.replace('rope_type', 'type')}", (5e5, "yarn", "float32")),
        (f"rope_parameters={YARN}", (5e5, "yarn", "float32")),
        ("rope_scaling=null", (5e5, "default", "float32")),
        ("torch_dtype=bfloat16", (5e5, "default", "bfloat16")),
        ("dtype=bfloat16", (5e5, "default", "bfloat16")),
    ],
)
def test_an_override_wins_in_whichever_spelling(
    tmp_path: Path,
    spelled: dict[str, object],
    override: str,
    expected: tuple[float, str, str],
) -> None:
    shape = {
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    (tmp_path / "config.json").write_text(json.dumps(shape | spelled))
    chosen = models("models=auto", f"models.ckpt_dir={tmp_path}", f"models.hf_overrides.{override}")
    spec = read_model_spec(chosen)
    assert spec.rope is not None
    assert (spec.rope.theta, spec.rope.kind, spec.dtype) == expected


@pytest.mark.parametrize(
    ("override", "hint"),
    [("sliding_windw=8", "did you mean sliding_window"), ("nonsense=1", "leave it out")],
)
def test_an_override_that_changes_nothing_is_refused(override: str, hint: str) -> None:
    keys = ("models=mistral-7b", "models.load_format=dummy", f"models.hf_overrides.{override}")
    with pytest.raises(ConfigError, match=rf"hf_overrides\.\w+ changes nothing.*{hint}"):
        read_model_spec(models(*keys))
