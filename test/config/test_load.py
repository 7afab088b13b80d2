import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton

from chitu_like.config.files import PACKAGE_DIR, find_top_file, values_dir
from chitu_like.config.load import load_config
from chitu_like.config.schema import ServeConfig
from chitu_like.core.errors import ChituError, ConfigError, UnsupportedError

OWN = ("models=auto", "models.ckpt_dir=/x")


def load(*overrides: str, **environ: str) -> ServeConfig:
    return load_config(overrides, environ=environ)


def fault(*overrides: str, **environ: str) -> str:
    with pytest.raises(ChituError) as raised:
        load(*overrides, **environ)
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_nothing_given_is_the_embedded_model_at_every_default() -> None:
    config = load()
    assert config.models.ckpt_dir == str(PACKAGE_DIR / "assets" / "tiny-chat")
    at_default = dataclasses.replace(config.models, ckpt_dir=None)
    assert dataclasses.replace(config, models=at_default) == ServeConfig()


def test_overrides_reach_their_keys() -> None:
    config = load(*OWN, "infer.max_batch_size=7", "dtype=float16", "serve.drain_timeout_s=3")
    assert (config.infer.max_reqs, config.dtype, config.serve.drain_timeout_s) == (
        7,
        "float16",
        3.0,
    )
    assert config.models.name == "auto"


def test_a_home_folder_is_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    config = load("models=auto", "models.ckpt_dir=~/m", "models.tokenizer_path=~/t")
    assert (config.models.ckpt_dir, config.models.tokenizer_path) == ("/home/me/m", "/home/me/t")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["infer.max_reqs=many"],
            "infer.max_reqs=many: use auto or a whole number from 1 to 65536",
        ),
        (["infer.seed=1.5"], "infer.seed=1.5: use a whole number from 0 to 9223372036854775807"),
        (["serve.host="], "serve.host='': use printable text that is not empty"),
        (["models=auto"], "models=auto needs a folder: set models.ckpt_dir=<Hugging Face folder>"),
        (
            ["models=qwen3-0.6b"],
            "models=qwen3-0.6b brings no weights: set models.ckpt_dir=<Hugging Face folder>, or "
            "models.load_format=dummy for random weights",
        ),
        (
            ["models.ckpt_dir=/x"],
            "models.ckpt_dir=/x but models=tiny-chat, the embedded model: add models=auto",
        ),
        (
            ["models.ckpt_dir=package:../x"],
            "models.ckpt_dir=package:../x: use package:tiny-chat, or the path of a folder",
        ),
        ([*OWN, "quant=awk"], None),
    ],
)
def test_a_wrong_value_is_one_line(overrides: list[str], message: str | None) -> None:
    assert fault(*overrides) == (message or fault(*overrides))


def test_an_unknown_model_names_the_nearest_and_all() -> None:
    message = fault("models=qwen3-0.6")
    assert message.startswith(
        "models=qwen3-0.6 is no entry in config/models: did you mean qwen3-0.6b"
    )
    assert "tiny-chat" in message
    assert "base" not in message


@pytest.mark.parametrize(
    "name", ["QWEN2-7b-instruct", "Qwen2-7B-Instruct", "qwen2-7b-instruct.yaml"]
)
def test_model_names_ignore_case(name: str) -> None:
    assert load(f"models={name}", "models.load_format=dummy").models.name == "Qwen2-7B-Instruct"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("infer.ep_size=2", "infer.ep_size=2: this version has no models with experts; use 1"),
        (
            "infer.attn_type=flash_mla",
            "infer.attn_type=flash_mla: this version has no models with latent attention; use auto",
        ),
        (
            "infer.op_impl=cuda",
            "infer.op_impl=cuda: this version has no compiled kernels; use auto, torch or triton",
        ),
        (
            "infer.kv_cache_dtype=fp8_e4m3",
            "infer.kv_cache_dtype=fp8_e4m3: this version keeps the KV cache in the model's dtype; "
            "use auto",
        ),
        (
            "infer.mla_absorb=absorb",
            "infer.mla_absorb=absorb: this version has no models with latent attention; use auto",
        ),
        ("infer.soft_fp8=true", None),
        ("quant=gptq", "quant=gptq: this version serves unquantised checkpoints; leave it out"),
        ("quant_on_load=true", None),
    ],
)
def test_what_cannot_take_effect_yet_is_refused(override: str, message: str | None) -> None:
    with pytest.raises(UnsupportedError) as raised:
        load(*OWN, override)
    assert str(raised.value).startswith(override)
    if message is not None:
        assert str(raised.value) == message


@pytest.mark.parametrize(
    "override",
    ["infer.use_cuda_graph=false", "infer.soft_fp8=false", "skip_preprocess=false", "quant=null"],
)
def test_saying_no_to_what_is_not_there_is_fine(override: str) -> None:
    load(*OWN, override)


@pytest.fixture
def own_file(tmp_path: Path) -> Path:
    folder = tmp_path / "my, (own) = #files"
    (folder / "models").mkdir(parents=True)
    (folder / "models" / "Mine.yaml").write_text(
        "defaults: [qwen3-0.6b, _self_]\nload_format: dummy\nhf_config: {num_hidden_layers: 2}\n"
    )
    path = folder / "my service.yaml"
    path.write_text(
        "defaults: [serve, override models: Mine, _self_]\n"
        "infer: {max_batch_size: 5, block_size: 8}\nlog_dir: logs\n"
    )
    return path


def test_config_name_may_be_a_path_with_models_of_its_own(own_file: Path) -> None:
    for name in (str(own_file), str(own_file.with_suffix(""))):
        config = load(CONFIG_NAME=name)
        assert (config.models.name, config.models.load_format) == ("Mine", "dummy")
        assert config.models.hf_config["num_hidden_layers"] == 2
        assert config.models.hf_config["hidden_size"] == 1024
        assert (config.infer.max_reqs, config.infer.block_size) == (5, 8)
        assert config.log_dir == "logs"


def test_the_command_line_wins_over_the_file(own_file: Path) -> None:
    config = load_config(
        ["infer.max_reqs=6", "log_dir=x", "models=glm-4-9b-chat", "models.load_format=dummy"],
        config_name=str(own_file),
        environ={},
    )
    assert (config.infer.max_reqs, config.log_dir, config.models.name) == (6, "x", "glm-4-9b-chat")


def test_config_name_may_be_a_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "serve.yaml").write_text("not: this one")
    for name in ("serve", "serve.yaml"):
        assert find_top_file(name, values_dir()) == values_dir() / "serve.yaml"


def test_a_file_may_leave_out_what_is_at_its_default(tmp_path: Path) -> None:
    path = tmp_path / "few.yaml"
    path.write_text("defaults: [models: tiny-chat, _self_]\ninfer:\nserve: {port: 1}\n")
    config = load("infer.max_reqs=2", CONFIG_NAME=str(path))
    assert (config.serve.port, config.serve.host, config.infer.max_reqs) == (1, "127.0.0.1", 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("infer: {max_reqz: 2}", "unknown key infer.max_reqz: did you mean infer.max_reqs?"),
        ("infer: 3", "infer"),
        ("infer: {max_batch_size: 2, max_reqs: 3}", "are one key: give one"),
        ("log_dir: [", "while parsing"),
        ("log_dir: ${nowhere}", "nowhere"),
        ("log_dir: a\nlog_dir: b", "duplicate key"),
        ("7: 8", "unknown key 7"),
        ("serve: {api_keys: sk-1}", "serve.api_keys=***: use a list"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(f"defaults: [serve, _self_]\n{text}\n")
    assert message in fault(CONFIG_NAME=str(path))


@pytest.mark.parametrize("text", ["infer: {max_reqs: 2}", "", "defaults: [_self_]"])
@pytest.mark.parametrize("overrides", [(), ("models=auto",)])
def test_a_file_without_a_model_says_how_to_begin(
    tmp_path: Path, text: str, overrides: tuple[str, ...]
) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    message = fault(*overrides, CONFIG_NAME=str(path))
    assert message.startswith(
        f"{path} chooses no model: let it begin with `defaults: [serve, _self_]`"
    )


def test_a_file_that_names_itself_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("defaults: [own]")
    assert fault(CONFIG_NAME=str(path)).startswith(f"{path}: its defaults lead back to itself")


@pytest.mark.parametrize("text", ["- a\n- b", "just text", "defaults: 3"])
def test_a_file_of_another_shape_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    fault(CONFIG_NAME=str(path))


def test_a_missing_file_names_those_there_are(tmp_path: Path) -> None:
    message = fault(CONFIG_NAME=str(tmp_path / "none"))
    assert message.startswith(
        f"CONFIG_NAME={tmp_path}/none: no such file; give a path, or one of plan, serve"
    )
    (tmp_path / "own.txt").write_text("")
    assert fault(CONFIG_NAME=str(tmp_path / "own.txt")).endswith("must end in .yaml")


def test_an_outer_hydra_program_is_not_disturbed(tmp_path: Path) -> None:
    (tmp_path / "outer.yaml").write_text("a: 1\n")
    with initialize_config_dir(str(tmp_path), version_base="1.2", job_name="outer"):
        before = dict(Singleton._instances)
        hydra = GlobalHydra.instance().hydra
        load(*OWN)
        fault("infer.max_reqs=x")
        assert dict(Singleton._instances) == before
        assert GlobalHydra.instance().hydra is hydra
        assert compose("outer").a == 1


def test_hydra_is_left_as_it_was_found() -> None:
    before = GlobalHydra.instance().is_initialized()
    load(*OWN)
    assert GlobalHydra.instance().is_initialized() is before


def test_an_installed_package_finds_its_values_inside(tmp_path: Path) -> None:
    site = tmp_path / "site"
    for room in ("config", "core"):
        shutil.copytree(PACKAGE_DIR / room, site / "chitu_like" / room)
    shutil.copy(PACKAGE_DIR / "__init__.py", site / "chitu_like")
    shutil.copytree(values_dir(), site / "chitu_like" / "_values")
    program = (
        "import sys; from chitu_like.config.load import load_config;"
        "config = load_config(['models=qwen3-0.6b', 'models.load_format=dummy'], environ={});"
        "print(config.models.hf_config['hidden_size'], 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "1024 False\n"
    assert values_dir(site / "chitu_like") == site / "chitu_like" / "_values"
    shutil.rmtree(site / "chitu_like" / "_values")
    with pytest.raises(ConfigError, match="install the package again"):
        values_dir(site / "chitu_like")
