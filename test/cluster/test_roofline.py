"""The roofline by hand, and that helix's figures in config are those of PLANNING."""

import msgspec
import pytest

from chitu_like.cluster.cost_model import BatchShape
from chitu_like.cluster.profile import find_profile
from chitu_like.cluster.roofline import (
    SMALL_KERNELS,
    SMALL_PASSES,
    DeviceFigures,
    Rate,
    RooflineStep,
)
from chitu_like.core.model_spec import ModelSpec

SPEC = ModelSpec.from_hf_config(
    {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "vocab_size": 1000,
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
    }
)
GEMM = Rate(overhead_s=0.0, flops_per_s=1e12, bytes_per_s=1e30)
PREFILL = Rate(overhead_s=1e-3, flops_per_s=1e9, bytes_per_s=1e30)
DECODE = Rate(overhead_s=0.0, flops_per_s=1e30, bytes_per_s=1e6)
REDUCE = Rate(overhead_s=1e-2, flops_per_s=1.0, bytes_per_s=1e3)
FIGURES = DeviceFigures(
    source="made up",
    memory_bytes=1e9,
    gemm=GEMM,
    prefill=PREFILL,
    decode=DECODE,
    all_reduce={2: REDUCE},
)
PROMPT = BatchShape(num_prefill_tokens=10, prefill_pairs=55, num_chunks=1)
DECODES = BatchShape(num_decodes=3, decode_context=100)


def matrices(tokens: int) -> float:
    weights = 64 * (64 + 2 * 16) + 64 * 64 + 3 * 64 * 256
    return 2 * tokens * weights / 1e12


def test_a_prompt_is_matrices_attention_and_the_head() -> None:
    attention = 1e-3 + 4 * 55 * 64 / 1e9
    head = 2 * 1 * 64 * 1000 / 1e12
    step = RooflineStep(FIGURES, SPEC, num_layers=2)
    assert step.seconds(PROMPT) == pytest.approx(2 * (matrices(10) + attention) + head)


def test_decodes_read_the_cache() -> None:
    read = (100 * 2 * 16 + 3 * 2 * 64) * 2 / 1e6
    step = RooflineStep(FIGURES, SPEC, num_layers=1, is_last=False)
    assert step.seconds(DECODES) == pytest.approx(matrices(3) + read)


def test_a_chunk_reads_what_stands_before_it() -> None:
    slow = msgspec.structs.replace(PREFILL, bytes_per_s=1e6, flops_per_s=1e30)
    step = RooflineStep(
        msgspec.structs.replace(FIGURES, prefill=slow), SPEC, num_layers=1, is_last=False
    )
    chunk = msgspec.structs.replace(PROMPT, prefill_pairs=55 + 10 * 500, prefill_context=500)
    alone, behind = step.seconds(PROMPT), step.seconds(chunk)
    assert behind - alone == pytest.approx(500 * 2 * 16 * 2 / 1e6)


def test_two_devices_halve_the_matrices_and_reduce_twice_a_layer() -> None:
    half = RooflineStep(FIGURES, SPEC, tp=2, num_layers=1, is_last=False).seconds(PROMPT)
    attention = 1e-3 + 4 * 55 * 32 / 1e9
    reduces = 2 * (1e-2 + 10 * 64 * 2 / 1e3)
    assert half == pytest.approx(matrices(10) / 2 + attention + reduces)


def test_small_kernels_cost_launches_and_passes_over_memory() -> None:
    slow = Rate(overhead_s=1e-6, flops_per_s=1e30, bytes_per_s=1e9)
    figures = DeviceFigures(
        source="made up", memory_bytes=1e9, gemm=slow, prefill=PREFILL, decode=DECODE
    )
    step = RooflineStep(figures, SPEC, num_layers=1, is_last=False)
    read = (100 * 2 * 16 + 3 * 2 * 64) * 2 / 1e6
    shapes = ((96, 64), (64, 64), (512, 64), (64, 256))
    products = sum(1e-6 + 2 * (3 * k + k * n + 3 * n) / 1e9 for n, k in shapes)
    small = SMALL_KERNELS * 1e-6 + SMALL_PASSES * 3 * 64 * 2 / 1e9
    assert step.seconds(DECODES) == pytest.approx(products + read + small)


def test_nothing_costs_nothing() -> None:
    assert RooflineStep(FIGURES, SPEC, num_layers=2).seconds(BatchShape()) == 0


def test_helix_figures_in_config() -> None:
    profile = find_profile("roofline")
    large, small = profile.model("llama2_70b"), profile.model("llama1_30b")
    assert (large.num_layers, large.layer_bytes, large.activation_bytes) == (80, 1.53e9, 16384)
    assert (small.num_layers, small.layer_bytes, small.activation_bytes) == (60, 1e9, 13312)
    planning = profile.planning("llama2_70b")
    assert (planning.mean_input, planning.mean_output, planning.longest_input) == (750, 240, 2048)
    assert planning.typical_layers["T4x4"] == 12
    assert planning.typical_layers_small["A100-40GB"] == 12
    assert profile.planning("llama1_30b").start_speed["L4x2"] == 15


def test_a_larger_device_is_faster_and_holds_more() -> None:
    profile = find_profile("roofline")
    times = profile.layer_times_of("llama2_70b", ["T4", "L4", "A100-40GB", "H200"])
    decodes = [t.decode_s(64) for t in times.values()]
    prompts = [t.prompt_s(1500) for t in times.values()]
    layers = [t.max_layers for t in times.values()]
    assert prompts == sorted(prompts, reverse=True)
    assert decodes[2:] == sorted(decodes[2:], reverse=True)
    assert layers == sorted(layers)
    assert layers[:3] == [5, 7, 13]
