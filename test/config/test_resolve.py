import re
from dataclasses import replace

import pytest
from machines import CPU

from chitu_like.attention.base import attention_backends
from chitu_like.config.architecture import read_model_spec
from chitu_like.config.attention_choice import HOST_PLANNED
from chitu_like.config.device_facts import GIB, DeviceFacts
from chitu_like.config.explain import explain_key, list_keys
from chitu_like.config.keys import known_keys
from chitu_like.config.load import load_config
from chitu_like.config.planning import PlanningConfig
from chitu_like.config.report import format_config, value_of
from chitu_like.config.resolve import resolve
from chitu_like.config.resolved import ResolvedConfig
from chitu_like.config.settle import settle
from chitu_like.core.errors import CapacityError, ChituError, ConfigError, UnsupportedError
from chitu_like.instance import load_order

H200 = replace(
    CPU,
    device="cuda",
    name="NVIDIA H200",
    memory_bytes=139 * GIB,
    free_bytes=138 * GIB,
    compute_capability=(9, 0),
)
HOPPER = replace(H200, has_triton=True, has_flashinfer=True)
T4 = replace(H200, name="Tesla T4", supports_bf16=False, compute_capability=(7, 5))


def resolved(facts: DeviceFacts, *overrides: str, model: str = "qwen3-0.6b") -> ResolvedConfig:
    config = load_config([f"models={model}", "models.load_format=dummy", *overrides], environ={})
    return resolve(config, facts, read_model_spec(config.models))


def reason(of: ResolvedConfig, key: str) -> str:
    return next(decision.reason for decision in of.decisions if decision.key == key)


def test_every_auto_becomes_a_value_with_a_reason() -> None:
    for facts in (CPU, H200, HOPPER):
        done = settle(resolved(facts), 3000)
        decided = {decision.key for decision in done.decisions}
        autos = {
            key.name
            for key in known_keys().values()
            if value_of(done.config, key) == "auto" and key.name != "models.load_format"
        }
        assert decided == autos
        assert all(decision.reason and decision.value != "auto" for decision in done.decisions)


def test_a_cpu() -> None:
    done = resolved(CPU)
    assert (done.device, done.dtype, done.attn_type, done.op_impl) == (
        "cpu",
        "bfloat16",
        "sdpa",
        "torch",
    )
    assert (done.block_size, done.prefill_chunk_size, done.max_num_batched_tokens) == (
        32,
        512,
        2048,
    )
    assert (done.swap_space_bytes, done.use_cuda_graph, done.max_seq_len) == (0, False, 40960)
    assert (done.num_blocks, done.max_reqs) == (None, None)
    assert reason(done, "infer.device") == "no CUDA device is visible"


def test_a_gpu() -> None:
    done = resolved(H200)
    assert (done.device, done.block_size, done.max_num_batched_tokens) == ("cuda", 16, 8192)
    assert done.op_impl == "triton"
    assert done.swap_space_bytes == 4 * GIB
    assert reason(done, "infer.device") == "NVIDIA H200"
    small_host = resolved(replace(H200, host_free_bytes=2 * GIB))
    assert small_host.swap_space_bytes == GIB // 2


def test_a_gpu_takes_the_fastest_attention_that_is_installed() -> None:
    done = resolved(HOPPER)
    assert (done.attn_type, done.use_cuda_graph) == ("flashinfer+triton", True)
    assert reason(done, "infer.attn_type").startswith("the fastest for prompts, and for decodes")
    assert reason(done, "infer.use_cuda_graph") == "a decode step is one launch"
    done = resolved(replace(H200, has_triton=True))
    assert (done.attn_type, done.use_cuda_graph) == ("triton", True)
    assert reason(done, "infer.attn_type") == "FlashInfer with kernels or nvcc is not installed"
    done = resolved(H200)
    assert (done.attn_type, done.use_cuda_graph) == ("sdpa", False)
    assert reason(done, "infer.attn_type") == (
        "FlashInfer with kernels or nvcc is not installed; Triton is not installed"
    )
    assert reason(done, "infer.use_cuda_graph") == (
        "decodes of infer.attn_type=sdpa are planned on the host"
    )


@pytest.mark.parametrize(
    ("override", "attn_type", "why"),
    [
        ("dtype=float32", "triton", "FlashInfer does not serve heads of 128 in float32"),
        ("models.hf_overrides.head_dim=80", "triton", "FlashInfer does not serve heads of 80 in"),
        ("models.hf_overrides.head_dim=512", "sdpa", "triton's heads are of at most 256, not of"),
        ("infer.device=cuda", "flashinfer+triton", "the fastest for prompts"),
    ],
)
def test_what_one_attention_does_not_serve_another_does(
    override: str, attn_type: str, why: str
) -> None:
    done = resolved(HOPPER, override)
    assert done.attn_type == attn_type
    assert why in reason(done, "infer.attn_type")
    assert done.use_cuda_graph == (attn_type != "sdpa")


def test_flashinfer_is_chosen_from_ampere_on() -> None:
    t4 = replace(T4, has_triton=True, has_flashinfer=True)
    done = resolved(t4)
    assert done.attn_type == "triton"
    assert reason(done, "infer.attn_type") == (
        "FlashInfer is for Ampere and later, not for compute capability 7.5"
    )
    assert resolved(t4, "infer.attn_type=flashinfer").attn_type == "flashinfer"  # who asks gets it
    assert resolved(replace(t4, has_triton=False)).attn_type == "sdpa"
    a100 = replace(HOPPER, name="NVIDIA A100", compute_capability=(8, 0))
    assert resolved(a100).attn_type == "flashinfer+triton"


def test_graphs_follow_the_attention_that_is_asked_for() -> None:
    assert resolved(HOPPER, "infer.attn_type=flashinfer+xqa").use_cuda_graph
    assert not resolved(HOPPER, "infer.attn_type=ref").use_cuda_graph
    assert not resolved(HOPPER, "infer.use_cuda_graph=false").use_cuda_graph
    done = resolved(HOPPER, "infer.attn_type=triton", "infer.use_cuda_graph=true")
    assert (done.attn_type, done.use_cuda_graph) == ("triton", True)


@pytest.mark.parametrize("attn_type", ["ref", "sdpa"])
def test_graphs_want_attention_that_can_be_captured(attn_type: str) -> None:
    overrides = (f"infer.attn_type={attn_type}", "infer.use_cuda_graph=true")
    with pytest.raises(ConfigError, match=rf"attn_type={re.escape(attn_type)} are planned on the"):
        resolved(H200, *overrides)
    with pytest.raises(ConfigError, match=r"attn_type=sdpa are planned on the"):
        resolved(H200, "infer.use_cuda_graph=true")  # as auto decides there
    with pytest.raises(ConfigError, match=r"use_cuda_graph=true: needs a CUDA device"):
        resolved(CPU, "infer.use_cuda_graph=true")


def test_host_planned_attention_is_what_records_nothing() -> None:
    names = [name for name in attention_backends.names() if name != "flash_mla"]
    host_planned = {name for name in names if not attention_backends.get(name).supports_cuda_graph}
    assert host_planned == set(HOST_PLANNED)


def test_triton_ops_are_refused_on_a_cpu() -> None:
    with pytest.raises(ConfigError, match=r"infer\.op_impl=triton: needs a CUDA device"):
        resolved(CPU, "infer.op_impl=triton")


def test_equal_bits_in_every_batch_want_one_kind_of_kernels() -> None:
    done = resolved(HOPPER, "infer.deterministic=true")
    assert (done.attn_type, done.op_impl) == ("triton", "triton")
    for key in ("infer.attn_type", "infer.op_impl"):
        assert reason(done, key).startswith("infer.deterministic: ")
    given = ("infer.attn_type=triton", "infer.op_impl=triton", "infer.use_cuda_graph=true")
    done = resolved(HOPPER, "infer.deterministic=true", "infer.pp_size=2", *given)
    assert (done.attn_type, done.op_impl, done.use_cuda_graph) == ("triton", "triton", True)
    assert load_order(settle(done, 3000)).deterministic
    assert not load_order(settle(resolved(HOPPER), 3000)).deterministic


@pytest.mark.parametrize(
    ("facts", "override", "message"),
    [
        (CPU, "infer.device=auto", "on a CPU the number of tokens decides how torch adds up; use"),
        (H200, "infer.device=auto", "its kernels need Triton, which is not installed"),
        (HOPPER, "infer.op_impl=torch", "infer.op_impl=torch depends on the batch; use auto or"),
        (HOPPER, "infer.attn_type=sdpa", "infer.attn_type=sdpa depends on the batch; use auto or"),
        (HOPPER, "infer.attn_type=flashinfer+xqa", "infer.attn_type=flashinfer+xqa depends on"),
        (HOPPER, "infer.tp_size=2", "infer.tp_size=2 adds up over ranks in an order of its own"),
        (HOPPER, "models.hf_overrides.head_dim=512", "the model's heads of 512 are more than the"),
    ],
)
def test_equal_bits_that_cannot_be_kept_are_not_promised(
    facts: DeviceFacts, override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as raised:
        resolved(facts, "infer.deterministic=true", override)
    assert str(raised.value).startswith("infer.deterministic=true: ")
    assert "\n" not in str(raised.value)
    resolved(facts, override)  # alone it is fine


def test_what_is_given_stays() -> None:
    done = resolved(
        CPU,
        "infer.device=cpu",
        "dtype=float32",
        "infer.block_size=8",
        "infer.attn_type=ref",
        "infer.swap_space_gib=1.5",
        "infer.max_seq_len=100",
        "infer.max_reqs=3",
        "infer.num_blocks=99",
        "scheduler.max_queued_tokens=5",
    )
    assert (done.dtype, done.block_size, done.attn_type) == ("float32", 8, "ref")
    assert done.swap_space_bytes == GIB * 3 // 2
    assert (done.max_seq_len, done.max_reqs, done.num_blocks) == (100, 3, 99)
    assert done.max_queued_tokens == 5
    assert not {"dtype", "infer.block_size"} & {decision.key for decision in done.decisions}


def test_a_step_holds_what_was_given() -> None:
    assert resolved(CPU, "infer.prefill_chunk_size=4096").max_num_batched_tokens == 4096
    assert resolved(CPU, "scheduler.max_num_batched_tokens=64").prefill_chunk_size == 64
    assert resolved(CPU, "infer.max_reqs=3000").max_num_batched_tokens == 3000


def test_dtype_follows_checkpoint_and_device() -> None:
    assert resolved(CPU, model="opt-125m").dtype == "float16"
    assert resolved(CPU, "models.hf_overrides.torch_dtype=float32").dtype == "float32"
    assert resolved(T4).dtype == "float16"
    assert reason(resolved(T4), "dtype") == "Tesla T4 does not compute bfloat16"
    with pytest.raises(
        UnsupportedError, match=r"^dtype=bfloat16: Tesla T4 does not compute it; use"
    ):
        resolved(T4, "dtype=bfloat16")


def test_the_skew_cache_shares_no_prefixes() -> None:
    done = resolved(CPU, "infer.cache_type=skew")
    assert not done.enable_prefix_caching
    assert "skew" in reason(done, "infer.enable_prefix_caching")
    assert resolved(CPU).enable_prefix_caching


@pytest.mark.parametrize(
    ("facts", "override", "kind", "message"),
    [
        (
            CPU,
            "infer.device=cuda",
            ConfigError,
            "infer.device=cuda: no CUDA device is visible; use auto or cpu",
        ),
        (
            CPU,
            "infer.max_seq_len=50000",
            ConfigError,
            "infer.max_seq_len=50000 exceeds what qwen3-0.6b is made for: use at most 40960",
        ),
        (
            CPU,
            "infer.pp_layer_partition=[27]",
            ConfigError,
            "infer.pp_layer_partition=[27] has 27 layers but qwen3-0.6b has 28: "
            "make them add up to 28",
        ),
        (
            CPU,
            "infer.swap_space_gib=100",
            CapacityError,
            "infer.swap_space_gib=100 exceeds the 20.0 GiB of free host memory: use less, or 0 to "
            "preempt by recomputing",
        ),
    ],
)
def test_what_contradicts_model_or_device_is_one_line(
    facts: DeviceFacts, override: str, kind: type[ChituError], message: str
) -> None:
    with pytest.raises(kind) as raised:
        resolved(facts, override)
    assert str(raised.value) == message


def test_the_pool_settles_length_and_requests() -> None:
    large = settle(resolved(CPU), 3000)
    assert (large.num_blocks, large.max_seq_len, large.max_reqs) == (3000, 40960, 64)
    small = settle(resolved(CPU), 10)
    assert (small.max_seq_len, small.max_reqs) == (320, 10)
    given = settle(resolved(CPU, "infer.max_seq_len=320", "infer.max_reqs=2"), 10)
    assert (given.max_seq_len, given.max_reqs) == (320, 2)


def test_a_skew_slot_is_one_block_as_long_as_the_longest_request() -> None:
    done = settle(resolved(CPU, "infer.cache_type=skew"), 3000)
    assert (done.block_size, done.max_seq_len) == (4096, 4096)
    assert (done.num_blocks, done.max_reqs) == (64, 64)
    done = settle(resolved(CPU, "infer.cache_type=skew", "infer.max_reqs=3"), 3000)
    assert (done.num_blocks, done.max_reqs) == (3, 3)
    done = settle(resolved(CPU, "infer.cache_type=skew", "infer.max_seq_len=33"), 9)
    assert (done.block_size, done.num_blocks, done.max_reqs) == (33, 9, 9)


def test_a_block_size_has_no_meaning_in_the_skew_cache() -> None:
    with pytest.raises(ConfigError, match=r"infer\.block_size=16 has no meaning"):
        resolved(CPU, "infer.cache_type=skew", "infer.block_size=16")


@pytest.mark.parametrize(
    ("overrides", "num_blocks"),
    [
        (["infer.max_seq_len=321"], 10),
        ([], 0),
        (["infer.max_reqs=11"], 10),
        (["infer.max_reqs=3", "infer.max_seq_len=160", "infer.cache_type=skew"], 2),
    ],
)
def test_a_pool_too_small_is_said_so(overrides: list[str], num_blocks: int) -> None:
    with pytest.raises(CapacityError) as raised:
        settle(resolved(CPU, *overrides), num_blocks)
    assert "\n" not in str(raised.value)


def test_the_printed_configuration_is_whole_and_masks_secrets() -> None:
    folder = "/models/" + "deep/" * 20 + "Qwen3"
    own = ("serve.api_keys=[sk-1,sk-2]", "serve.admin_api_key=sk-3", "log_dir=my/")
    done = settle(resolved(CPU, *own, f"models.tokenizer_path={folder}"), 3000)
    text = format_config(done)
    assert "sk-" not in text
    lines = {line.split()[0]: line.split()[1:] for line in text.splitlines()}
    assert set(lines) == {"models", *known_keys()}
    assert lines["log_dir"] == ["my/", "set"]
    shown, _ = lines["models.tokenizer_path"]
    assert shown.startswith("...")
    assert folder.endswith(shown.removeprefix("..."))
    assert lines["infer.block_size"][:2] == ["32", "auto:"]
    assert lines["serve.api_keys"] == ["***", "(2", "keys)", "set"]
    assert lines["serve.port"] == ["21002", "default"]


OWN = ("models=qwen3-0.6b", "models.load_format=dummy")


def test_explain_says_meaning_default_and_origin() -> None:
    text = explain_key("infer.max_batch_size", (*OWN, "infer.max_batch_size=3"), environ={})
    assert text.splitlines() == [
        "infer.max_reqs: requests running at once",
        "  values:  auto or a whole number from 1 to 65536",
        "  default: auto",
        "  now:     3 (command line: infer.max_batch_size=3)",
        "  alias:   infer.max_batch_size",
    ]


@pytest.mark.parametrize(
    ("key", "environ", "now"),
    [
        ("infer.max_reqs", {}, "auto (default)"),
        ("models.load_format", {}, "dummy (command line: models.load_format=dummy)"),
        ("models.hf_config", {}, "config/models/qwen3-0.6b.yaml)"),
        ("quant", {}, "null (default)"),
        (
            "serve.api_keys",
            {"CHITU_LIKE_API_KEYS": "a"},
            "*** (1 keys) (environment: CHITU_LIKE_API",
        ),
    ],
)
def test_explain_knows_where_a_value_comes_from(
    key: str, environ: dict[str, str], now: str
) -> None:
    text = explain_key(key, (*OWN, "quant_on_load=false"), environ=environ)
    assert now in next(line for line in text.splitlines() if line.startswith("  now:"))


def test_explain_knows_models_and_refuses_slips() -> None:
    assert "tiny-chat" in explain_key("models")
    with pytest.raises(ConfigError, match=r"did you mean infer.max_reqs"):
        explain_key("infer.max_rex")
    keys = {*known_keys(), *known_keys(PlanningConfig)}
    assert len(list_keys().splitlines()) == len(keys)
