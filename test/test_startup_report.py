"""What is said at start of several ranks: sizes as ranges, the tightest rank, the speed of all."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from chitu_like.checkpoint.loader import LoadReport
from chitu_like.config.device_facts import DeviceFacts
from chitu_like.config.load import load_config
from chitu_like.config.resolve import resolve
from chitu_like.config.resolved import ResolvedConfig
from chitu_like.core.model_spec import ModelSpec
from chitu_like.layout import describe_layout
from chitu_like.model_files import read_model_files
from chitu_like.startup_report import memory_table, phases_line, read_phases, what_was_read
from chitu_like.worker.memory import MemoryPlan

MIB = 1 << 20
FACTS = DeviceFacts(
    device="cpu",
    name="a processor",
    memory_bytes=1 << 34,
    free_bytes=1 << 33,
    host_free_bytes=1 << 33,
    num_devices=1,
    num_cpu_cores=2,
    supports_bf16=True,
)
ROOMY = MemoryPlan(
    total_bytes=900 * MIB,
    other_bytes=0,
    weight_bytes=30 * MIB,
    activation_bytes=8 * MIB,
    graph_bytes=2 * MIB,
    kv_bytes=80 * MIB,
    bytes_per_block=MIB,
    num_blocks=80,
    reason="90% of much",
)
TIGHT = replace(
    ROOMY, weight_bytes=50 * MIB, bytes_per_block=2 * MIB, num_blocks=20, reason="little"
)


def resolved_config() -> tuple[ResolvedConfig, ModelSpec]:
    config = load_config(
        ["models=tiny-chat", "infer.device=cpu", "infer.block_size=32"], environ={}
    )
    spec = read_model_files(config).spec
    return resolve(config, FACTS, spec), spec


def rendered(*memories: MemoryPlan) -> str:
    out = io.StringIO()
    Console(file=out, width=120).print(memory_table(memories, resolved_config()[0], 0))
    return out.getvalue()


def test_ranks_that_differ_are_shown_as_ranges_and_the_tightest_bounds_them() -> None:
    text = rendered(ROOMY, TIGHT)
    assert "each of 2 ranks" in text
    assert "30.0 MiB to 50.0 MiB" in text
    assert "20.0 MiB to 40.0 MiB" in text  # 20 blocks of each rank's size
    assert "20 blocks of 32 tokens (little)" in text
    assert "640 tokens" in text


def test_ranks_alike_are_shown_once() -> None:
    text = rendered(ROOMY, ROOMY)
    assert " to " not in text
    assert "each of" not in rendered(ROOMY)


def test_the_speed_is_that_of_all_ranks_and_of_the_slowest() -> None:
    fast = LoadReport(num_tensors=1, num_bytes=4 * 10**9, load_s=1.0, after_load_s=0.0)
    slow = replace(fast, load_s=2.0)
    assert what_was_read([fast]) == "3.73 GiB in 1.0 s (4.0 GB/s)"
    assert what_was_read([fast, slow]) == (
        "7.45 GiB in 2.0 s (4.0 GB/s, 2.0 GB/s the slowest of 2 ranks)"
    )
    assert what_was_read([None, None]) == "no weights read"


def test_the_layout_names_the_layers_of_each_stage() -> None:
    def described(*keys: str) -> str:
        config = load_config(["models=tiny-chat", *keys], environ={})
        return describe_layout(config, read_model_files(config).spec)

    assert described() == "1 instance, tp 1 x pp 1"
    # Its head weighs as much as two of the eight layers, so the stages even out as 5 and 3.
    assert described("infer.tp_size=2", "infer.pp_size=2") == (
        "1 instance, tp 2 x pp 2 (5+3 layers)"
    )
    assert described("deploy.replicas=3", "infer.pp_size=2", "infer.pp_layer_partition=[2,6]") == (
        "3 instances, tp 1 x pp 2 (2+6 layers)"
    )


def test_the_phases_of_a_start_can_be_read_back() -> None:
    seconds = {"imports": 3.25, "KV cache and graphs": 1.5, "weights": 0.0}
    line = phases_line(seconds)
    assert "4.75 s" in line
    assert read_phases(line) == seconds
    assert read_phases("memory on cpu: 3 GiB, weights 0.1") is None
