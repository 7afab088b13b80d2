"""Microseconds of an all-reduce by message length, and of the norm behind it. Runs under torchrun.

Each way is captured into a CUDA graph of many calls, since that is how a decode step runs; the median
over replays, divided by the calls, of the slowest rank. `torch 1`, `torch 2` are torch's own one-shot
and two-shot kernels on a message that already lies in symmetric memory; `ours` takes any tensor.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed._symmetric_memory as symmetric_memory
from rich.console import Console
from rich.table import Table
from torch import Tensor

from chitu_like.bench.provenance import provenance
from chitu_like.bench.result_files import write_json
from chitu_like.cli.command_line import Parser, positive_ints
from chitu_like.core.ending import DONE
from chitu_like.core.errors import UnsupportedError
from chitu_like.distributed.collectives import Group, TorchGroup
from chitu_like.distributed.symmetric import make_tp_group
from chitu_like.ops.norm import add_rms_norm_op
from chitu_like.worker.device import device_facts

CALLS_PER_GRAPH = 20
REPLAYS = 20
EPS = 1e-5


@dataclass(frozen=True, kw_only=True)
class Row:
    """One message; microseconds by way."""

    num_tokens: int
    hidden_size: int
    num_bytes: int
    microseconds: dict[str, float]


def run(prog: str, arguments: Sequence[str]) -> int:
    """Measure, print tables on rank 0, write JSON if asked to."""
    options = _parser(prog).parse_args(arguments)
    if not torch.cuda.is_available() or "LOCAL_RANK" not in os.environ:
        raise UnsupportedError(f"{prog} wants CUDA devices and torchrun: see {prog} --help")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
    try:
        rows = list(_rows(_default_group(), device, options))
        if dist.get_rank() == 0:
            _report(prog, arguments, rows, options.json)
    finally:
        dist.destroy_process_group()
    return DONE


def _default_group() -> dist.ProcessGroup:
    world = dist.group.WORLD
    assert world is not None, "init_process_group comes first"
    return world


def _rows(
    world: dist.ProcessGroup, device: torch.device, options: argparse.Namespace
) -> Iterator[Row]:
    nccl, ours = TorchGroup(world), make_tp_group(world, device)
    for hidden_size in options.hidden_sizes:
        for num_tokens in options.tokens:
            x = torch.randn(num_tokens, hidden_size, device=device).bfloat16()
            ways = {**_reductions(x, nccl, ours, world), **_norms(x, nccl, ours)}
            yield Row(
                num_tokens=num_tokens,
                hidden_size=hidden_size,
                num_bytes=x.nbytes,
                microseconds={name: microseconds(way, x) for name, way in ways.items()},
            )


def _reductions(
    x: Tensor, nccl: Group, ours: Group, world: dist.ProcessGroup
) -> dict[str, Callable[[Tensor], object]]:
    shared = symmetric_memory.empty(x.shape, dtype=x.dtype, device=x.device)
    symmetric_memory.rendezvous(shared, world)
    shared.copy_(x)
    ops, name = torch.ops.symm_mem, world.group_name
    return {
        "NCCL": nccl.all_reduce,
        "torch 1": lambda _: ops.one_shot_all_reduce(shared, "sum", name),
        "torch 2": lambda _: ops.two_shot_all_reduce_(shared, "sum", name),
        "ours": ours.all_reduce,
    }


def _norms(x: Tensor, nccl: Group, ours: Group) -> dict[str, Callable[[Tensor], object]]:
    residual, weight = torch.randn_like(x), torch.rand_like(x[0])
    add_rms_norm = add_rms_norm_op.resolve(x.device, x.dtype)

    def apart(group: Group) -> Callable[[Tensor], object]:
        return lambda x: add_rms_norm(group.all_reduce(x), residual, weight, EPS)

    return {
        "NCCL, norm": apart(nccl),
        "ours, norm": apart(ours),
        "ours fused": lambda x: ours.all_reduce_add_rms_norm(x, residual, weight, EPS),
    }


def microseconds(way: Callable[[Tensor], object], message: Tensor) -> float:
    """Median microseconds of a call inside a CUDA graph, of the slowest rank.

    Args:
        way: may modify what it gets; the message is copied before each replay, so that it stays one.
        message: equal shapes on all ranks.
    """
    x = message.clone()
    way(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(CALLS_PER_GRAPH):
            way(x)
    times = []
    for _ in range(REPLAYS):
        x.copy_(message)
        start, end = (
            torch.Event("cuda", enable_timing=True),
            torch.Event("cuda", enable_timing=True),
        )
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / CALLS_PER_GRAPH)
    slowest = torch.tensor(statistics.median(times), device=message.device)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    return float(slowest)


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog,
        "Measure all-reduces of bfloat16 messages [tokens, hidden size] between CUDA devices of one "
        "node, by NCCL, by torch's kernels and by ours, inside CUDA graphs.",
        [f"torchrun --nproc_per_node 2 {prog} --tokens 1,8,32 --hidden-sizes 4096"],
    )
    for option, default in (("--tokens", [1, 8, 32, 128, 256]), ("--hidden-sizes", [4096, 5120])):
        text = f"(default: {','.join(map(str, default))})"
        parser.add_argument(option, type=positive_ints, default=default, metavar="N,...", help=text)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    return parser


def _report(prog: str, arguments: Sequence[str], rows: Sequence[Row], path: Path | None) -> None:
    ways = list(rows[0].microseconds)
    table = Table(title=f"microseconds on {dist.get_world_size()} devices", title_justify="left")
    for name in ("tokens", "hidden", "KiB", *ways):
        table.add_column(name, justify="right")
    for row in rows:
        place = (f"{row.num_tokens}", f"{row.hidden_size}", f"{row.num_bytes / 1024:.0f}")
        table.add_row(*place, *(f"{row.microseconds[way]:.1f}" for way in ways))
    Console(soft_wrap=True).print(table)
    if path is not None:
        origin = provenance(prog, arguments, device_facts("cuda"))
        results = {"benchmark": "all_reduce", "world_size": dist.get_world_size(), **asdict(origin)}
        write_json(path, {**results, "rows": [asdict(row) for row in rows]})
