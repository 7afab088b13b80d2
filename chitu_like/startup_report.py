"""What an operator reads once at start: the configuration, the memory, the address."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.table import Table

from chitu_like.checkpoint.loader import LoadReport
from chitu_like.config.report import format_config
from chitu_like.config.resolved import ResolvedConfig
from chitu_like.core.model_spec import ModelSpec
from chitu_like.instance import LoadedEngine
from chitu_like.layout import describe_layout
from chitu_like.worker.memory import MemoryPlan

TYPICAL_TOKENS = 1024
"""Prompt and answer of a usual chat turn: Azure's 2023 conversation trace has a median of 1,149."""
PHASES_BEGIN = "engine ready after "
GIB = 1 << 30
MIB = 1 << 20


def print_report(console: Console, loaded: LoadedEngine, spec: ModelSpec) -> None:
    """Say what was decided, where the memory went and which ranks hold what."""
    console.print(format_config(loaded.resolved), highlight=False, soft_wrap=True, markup=False)
    console.print(memory_table(loaded.memories, loaded.resolved, loaded.num_host_blocks))
    console.print(layout_line(spec, loaded), highlight=False, soft_wrap=True)
    console.print(phases_line(loaded.phases.seconds), highlight=False, soft_wrap=True)


def memory_table(
    memories: Sequence[MemoryPlan], resolved: ResolvedConfig, num_host_blocks: int
) -> Table:
    """Where the memory went, and how many tokens and requests the KV blocks hold.

    Args:
        memories: of each rank. Sizes are a rank's; where ranks differ, the least and the most. The
            rank with room for the fewest blocks bounds them all.
        resolved: the configuration.
        num_host_blocks: KV blocks in host memory.
    """
    tightest = min(memories, key=lambda memory: memory.num_blocks)
    num_blocks = tightest.num_blocks
    num_tokens = num_blocks * resolved.block_size
    title = f"memory on {resolved.device}"
    if len(memories) > 1:
        title += f", each of {len(memories)} ranks"
    table = Table(title=title, title_justify="left")
    table.add_column("what")
    table.add_column("size", justify="right")
    table.add_column("note")
    table.add_row("weights", _range(m.weight_bytes for m in memories), resolved.dtype)
    activations = _range(m.activation_bytes for m in memories)
    table.add_row("activations", activations, "at most, in one step")
    graphs = "none are captured" if not resolved.use_cuda_graph else "captured steps"
    table.add_row("graphs", _range(m.graph_bytes for m in memories), graphs)
    blocks = f"{num_blocks} blocks of {resolved.block_size} tokens ({tightest.reason})"
    table.add_row("KV cache", _range(num_blocks * m.bytes_per_block for m in memories), blocks)
    requests = f"{num_tokens / TYPICAL_TOKENS:.0f} requests of {TYPICAL_TOKENS} tokens"
    table.add_row("  holds", f"{num_tokens} tokens", requests)
    if num_host_blocks:
        swap = f"{num_host_blocks} blocks for preempted requests"
        sizes = _range(num_host_blocks * m.bytes_per_block for m in memories)
        table.add_row("swap space", sizes, swap)
    total = f"of {_range(m.total_bytes for m in memories)} in all"
    table.add_row("others", _range(m.other_bytes for m in memories), total)
    return table


def layout_line(spec: ModelSpec, loaded: LoadedEngine) -> str:
    """The parallel layout and what was loaded, in one line."""
    billions = spec.num_parameters() / 1e9
    size = f"{billions:.2f} B" if billions >= 0.1 else f"{billions * 1e3:.1f} M"
    return (
        f"{spec.architecture}, {size} parameters, {what_was_read(loaded.load_reports)}; "
        f"{describe_layout(loaded.resolved.config, spec)}, "
        f"{loaded.engine.info.max_reqs} requests at once, "
        f"{loaded.engine.info.max_seq_len} tokens each"
    )


def phases_line(seconds: Mapping[str, float]) -> str:
    """What the start spent its time on, in one line that `read_phases` understands."""
    phases = ", ".join(f"{name} {length:.2f}" for name, length in seconds.items())
    return f"{PHASES_BEGIN}{sum(seconds.values()):.2f} s: {phases}"


def read_phases(line: str) -> dict[str, float] | None:
    """Seconds by phase, of a line that `phases_line` wrote; None of any other."""
    if not line.startswith(PHASES_BEGIN):
        return None
    words = (phase.rpartition(" ") for phase in line.partition(": ")[2].split(", "))
    return {name: float(length) for name, _, length in words}


def what_was_read(reports: Sequence[LoadReport | None]) -> str:
    """Bytes, seconds and speed of the weights; with several ranks a rank's and that of all."""
    read = [report for report in reports if report is not None]
    if not read:
        return "no weights read"
    num_bytes = sum(report.num_bytes for report in read)
    load_s = max(report.load_s for report in read)
    speed = f"{num_bytes / max(load_s, 1e-9) / 1e9:.1f} GB/s"
    if len(read) > 1:
        slowest = min(report.bytes_per_s for report in read) / 1e9
        speed += f", {slowest:.1f} GB/s the slowest of {len(read)} ranks"
    return f"{_size(num_bytes)} in {load_s:.1f} s ({speed})"


def _range(sizes: Iterable[int]) -> str:
    """One size, or the least and the most of several."""
    texts = [_size(size) for size in sorted(sizes)]
    return texts[0] if texts[0] == texts[-1] else f"{texts[0]} to {texts[-1]}"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.2f} GiB" if num_bytes >= GIB / 10 else f"{num_bytes / MIB:.1f} MiB"
