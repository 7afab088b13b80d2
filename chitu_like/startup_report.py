"""What an operator reads once at start: the configuration, the memory, the address."""

from __future__ import annotations

from rich.table import Table

from chitu_like.config.resolved import ResolvedConfig
from chitu_like.core.model_spec import ModelSpec
from chitu_like.instance import LoadedEngine
from chitu_like.worker.memory import MemoryPlan

TYPICAL_TOKENS = 1024
"""Prompt and answer of a usual chat turn: Azure's 2023 conversation trace has a median of 1,149."""
GIB = 1 << 30
MIB = 1 << 20


def memory_table(memory: MemoryPlan, resolved: ResolvedConfig, num_host_blocks: int) -> Table:
    """Where the memory went, and how many tokens and requests the KV blocks hold."""
    num_tokens = memory.num_blocks * resolved.block_size
    table = Table(title=f"memory on {resolved.device}", title_justify="left")
    table.add_column("what")
    table.add_column("size", justify="right")
    table.add_column("note")
    table.add_row("weights", _size(memory.weight_bytes), resolved.dtype)
    table.add_row("activations", _size(memory.activation_bytes), "at most, in one step")
    graphs = "none are captured" if not resolved.use_cuda_graph else "captured decode steps"
    table.add_row("graphs", _size(0), graphs)
    blocks = f"{memory.num_blocks} blocks of {resolved.block_size} tokens ({memory.reason})"
    table.add_row("KV cache", _size(memory.kv_bytes), blocks)
    requests = f"{num_tokens / TYPICAL_TOKENS:.0f} requests of {TYPICAL_TOKENS} tokens"
    table.add_row("  holds", f"{num_tokens} tokens", requests)
    if num_host_blocks:
        swap = f"{num_host_blocks} blocks for preempted requests"
        table.add_row("swap space", _size(num_host_blocks * memory.bytes_per_block), swap)
    table.add_row("others", _size(memory.other_bytes), f"of {_size(memory.total_bytes)} in all")
    return table


def layout_line(spec: ModelSpec, loaded: LoadedEngine) -> str:
    """The parallel layout and what was loaded, in one line."""
    infer = loaded.resolved.config.infer
    report = loaded.load_report
    billions = spec.num_parameters() / 1e9
    size = f"{billions:.2f} B" if billions >= 0.1 else f"{billions * 1e3:.1f} M"
    read = "no weights read"
    if report is not None:
        gb_per_s = report.num_bytes / max(report.load_s, 1e-9) / 1e9
        read = f"{_size(report.num_bytes)} in {report.load_s:.1f} s ({gb_per_s:.1f} GB/s)"
    return (
        f"{spec.architecture}, {size} parameters, {read}; 1 instance, tp {infer.tp_size} x "
        f"pp {infer.pp_size}, {loaded.engine.info.max_reqs} requests at once, "
        f"{loaded.engine.info.max_seq_len} tokens each"
    )


def _size(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.2f} GiB" if num_bytes >= GIB / 10 else f"{num_bytes / MIB:.1f} MiB"
