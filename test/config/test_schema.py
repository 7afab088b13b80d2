import dataclasses

import pytest
from omegaconf import OmegaConf

from chitu_like.config.files import values_dir
from chitu_like.config.keys import ALIASES, find_key, known_keys, nearest_key
from chitu_like.config.schema import (
    InferConfig,
    ModelsConfig,
    RequestConfig,
    SchedulerConfig,
    ServeConfig,
    ServeSection,
)
from chitu_like.config.section import Section
from chitu_like.config.tree import build, config_from_json, config_to_json
from chitu_like.core.errors import ConfigError

# The table of CONTRACT section 2. Where it says "0 on cpu, 4 on cuda" the key is auto.
CONTRACT_DEFAULTS = {
    "models.ckpt_dir": None,
    "models.tokenizer_path": None,
    "models.load_format": "auto",
    "dtype": "auto",
    "infer.device": "auto",
    "infer.tp_size": 1,
    "infer.pp_size": 1,
    "infer.ep_size": 1,
    "deploy.replicas": 1,
    "infer.pp_layer_partition": None,
    "infer.max_seq_len": "auto",
    "infer.max_reqs": "auto",
    "infer.cache_type": "paged",
    "infer.block_size": "auto",
    "infer.memory_utilization": 0.9,
    "infer.num_blocks": "auto",
    "infer.swap_space_gib": "auto",
    "infer.kv_cache_dtype": "auto",
    "infer.enable_prefix_caching": True,
    "infer.prefill_chunk_size": "auto",
    "infer.attn_type": "auto",
    "infer.op_impl": "auto",
    "infer.use_cuda_graph": "auto",
    "infer.schedule_overlap": True,
    "infer.mla_absorb": "auto",
    "infer.soft_fp8": "auto",
    "infer.seed": 0,
    "infer.stop_with_eos": True,
    "infer.do_load": True,
    "infer.deterministic": False,
    "quant": None,
    "quant_on_load": False,
    "quant_ckpt_dir": None,
    "skip_preprocess": "auto",
    "scheduler.type": "prefill_first",
    "scheduler.max_num_batched_tokens": "auto",
    "scheduler.max_queued_requests": "auto",
    "scheduler.max_queued_tokens": "auto",
    "request.prompt_tokens_len": -1,
    "request.max_new_tokens": 128,
    "serve.host": "127.0.0.1",
    "serve.port": 21002,
    "serve.api_keys": (),
    "serve.admin_api_key": None,
    "serve.model_name": None,
    "serve.drain_timeout_s": 25,
    "serve.request_timeout_s": None,
    "serve.stall_timeout_s": 120,
    "log_dir": "outputs/",
}


@pytest.mark.parametrize(("name", "default"), CONTRACT_DEFAULTS.items())
def test_every_key_of_the_contract_has_its_default(name: str, default: object) -> None:
    assert known_keys()[name].default == default


def test_every_key_says_what_it_means() -> None:
    for key in known_keys().values():
        assert len(key.setting.meaning) > 10, key.name
        assert key.expected


def test_the_yaml_files_show_every_key_at_its_default() -> None:
    shown = OmegaConf.to_container(OmegaConf.load(values_dir() / "serve.yaml"))
    base = OmegaConf.to_container(OmegaConf.load(values_dir() / "models" / "base.yaml"))
    assert isinstance(shown, dict)
    assert shown.pop("defaults") == [{"models": "tiny-chat"}, "_self_"]
    shown["models"] = base
    assert build(ServeConfig, {str(name): value for name, value in shown.items()}) == ServeConfig()
    listed = set(_flatten(shown))
    assert listed == set(known_keys())


def _flatten(tree: dict, prefix: str = "") -> list[str]:  # type: ignore[type-arg]
    names = []
    for name, value in tree.items():
        is_section = isinstance(value, dict) and f"{prefix}{name}" not in known_keys()
        names += _flatten(value, f"{prefix}{name}.") if is_section else [f"{prefix}{name}"]
    return names


def test_a_configuration_is_frozen() -> None:
    config = ServeConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.infer.tp_size = 2  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.dtype = "float32"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (
            InferConfig,
            {"block_size": -3},
            "infer.block_size=-3: use auto or a whole number from 1 to 1024",
        ),
        (
            InferConfig,
            {"max_reqs": True},
            "infer.max_reqs=true: use auto or a whole number from 1 to 65536",
        ),
        (
            InferConfig,
            {"max_seq_len": 1 << 40},
            "infer.max_seq_len=1099511627776: use auto or a whole number from 1 to 16777216",
        ),
        (InferConfig, {"device": "gpu"}, "infer.device=gpu: use auto, cuda or cpu"),
        (InferConfig, {"use_cuda_graph": 1}, "infer.use_cuda_graph=1: use auto, true or false"),
        (
            InferConfig,
            {"memory_utilization": float("nan")},
            "infer.memory_utilization=nan: use a number from 0.01 to 1.0",
        ),
        (
            InferConfig,
            {"swap_space_gib": float("inf")},
            "infer.swap_space_gib=inf: use auto or a number from 0 to 65536",
        ),
        (
            InferConfig,
            {"pp_layer_partition": [3, 0], "pp_size": 2},
            "infer.pp_layer_partition=[3,0]: use null or a list like [a,b], "
            "each a whole number from 1 to 4096",
        ),
        (
            InferConfig,
            {"pp_layer_partition": [3, 2]},
            "infer.pp_layer_partition names 2 stages but infer.pp_size=1: "
            "give one number per stage",
        ),
        (InferConfig, {"attn_type": None}, None),
        (
            ModelsConfig,
            {"ckpt_dir": ""},
            "models.ckpt_dir='': use null or printable text that is not empty",
        ),
        (
            ModelsConfig,
            {"ckpt_dir": 7},
            "models.ckpt_dir=7: use null or printable text that is not empty",
        ),
        (
            ModelsConfig,
            {"hf_overrides": 3},
            "models.hf_overrides=3: use a mapping like {name:value}",
        ),
        (
            RequestConfig,
            {"prompt_tokens_len": 0},
            "request.prompt_tokens_len=0: use -1 or a whole number above 0",
        ),
        (ServeSection, {"port": 65536}, "serve.port=65536: use a whole number from 0 to 65535"),
        (
            ServeSection,
            {"api_keys": "sk-secret"},
            "serve.api_keys=***: use a list like [a,b], each printable text that is not empty",
        ),
        (
            ServeSection,
            {"admin_api_key": "sk secret"},
            "serve.admin_api_key=***: use keys of printable ASCII without spaces",
        ),
    ],
)
def test_a_value_that_does_not_fit_is_one_line(
    section: type[Section], values: dict[str, object], message: str | None
) -> None:
    with pytest.raises(ConfigError) as raised:
        section(**values)
    assert "\n" not in str(raised.value)
    if message is not None:
        assert str(raised.value) == message


def test_do_load_false_is_load_format_none() -> None:
    assert ServeConfig(infer=InferConfig(do_load=False)).models.load_format == "none"
    with pytest.raises(ConfigError, match=r"infer\.do_load=false contradicts models\.load_format"):
        ServeConfig(infer=InferConfig(do_load=False), models=ModelsConfig(load_format="dummy"))


def test_quant_ckpt_dir_is_the_checkpoint_and_keeps_the_tokenizer() -> None:
    both = ServeConfig(quant_ckpt_dir="/q", models=ModelsConfig(ckpt_dir="/full"))
    assert (both.models.ckpt_dir, both.models.tokenizer_dir) == ("/q", "/full")
    assert dataclasses.replace(both, dtype="float32").models == both.models
    alone = ServeConfig(quant_ckpt_dir="/q")
    assert (alone.models.ckpt_dir, alone.models.tokenizer_dir) == ("/q", "/q")


@pytest.mark.parametrize(
    ("infer", "budget", "message"),
    [
        (InferConfig(prefill_chunk_size=64), 32, "infer.prefill_chunk_size=64 exceeds scheduler.m"),
    ],
)
def test_a_step_too_small_is_refused(infer: InferConfig, budget: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ServeConfig(infer=infer, scheduler=SchedulerConfig(max_num_batched_tokens=budget))


def test_the_served_name() -> None:
    assert ServeConfig().served_name == "tiny-chat"
    auto = ModelsConfig(name="auto", ckpt_dir="/models/Qwen3-8B/")
    assert ServeConfig(models=auto).served_name == "Qwen3-8B"
    assert ServeConfig(models=auto, serve=ServeSection(model_name="m")).served_name == "m"


def test_ranks_are_counted() -> None:
    config = build(ServeConfig, {"infer": {"tp_size": 4, "pp_size": 2}, "deploy": {"replicas": 3}})
    assert (config.infer.num_ranks, config.num_ranks) == (8, 24)


def test_a_process_can_be_told_everything_as_json() -> None:
    config = ServeConfig(
        models=ModelsConfig(name="auto", ckpt_dir="/x", hf_overrides={"a": {"b": [1, None]}}),
        infer=InferConfig(pp_size=2, pp_layer_partition=(3, 4), max_reqs=5),
        serve=ServeSection(api_keys=("k",), request_timeout_s=3),
    )
    assert config_from_json(config_to_json(config)) == config


def test_secrets_stay_out_of_repr() -> None:
    config = ServeConfig(serve=ServeSection(api_keys=("sk-1",), admin_api_key="sk-2"))
    assert "sk-" not in repr(config)


@pytest.mark.parametrize(
    ("slip", "meant"),
    [
        ("infer.max_reqz", "infer.max_reqs"),
        ("max_reqs", "infer.max_reqs"),
        ("infer.port", "serve.port"),
        ("model", "models"),
        ("infer.max_batchsize", "infer.max_batch_size"),
        ("xyzzy", None),
    ],
)
def test_the_nearest_key_is_found(slip: str, meant: str | None) -> None:
    assert nearest_key(slip) == meant


def test_aliases_lead_to_keys() -> None:
    for alias, name in ALIASES.items():
        key = find_key(alias)
        assert key is not None
        assert key.name == name
