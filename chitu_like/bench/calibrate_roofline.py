"""Figures of devices for the roofline, from tables of kernel times: config/profiles/roofline.

The tables (`op_gemm.csv.gz`, `op_attn_prefill.csv.gz`, `op_attn_decode.csv.gz`, `op_allreduce.csv.gz`)
have a row a call: GPU, shape, milliseconds. Devices that no table has get their data sheet's peaks, times
what a device of their generation reaches of its own.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from chitu_like.cli.command_line import Parser
from chitu_like.cluster.nnls import Array
from chitu_like.cluster.profile_files import write_record
from chitu_like.cluster.roofline import DeviceFigures, Rate
from chitu_like.cluster.roofline_fit import fit_rate, relative_errors
from chitu_like.core.ending import DONE
from chitu_like.core.errors import ConfigError

DTYPE_BYTES = 2
LEAST_SIDE = 1024  # of a weight matrix; smaller ones are no layer's of a model worth planning for
BACKEND = "vllm_graph"  # all-reduces inside CUDA graphs, as in service


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """What a data sheet promises: bytes, dense half-precision flops a second, bytes a second."""

    memory_bytes: float
    flops_per_s: float
    bytes_per_s: float


SHEETS = {
    "H200": Sheet(memory_bytes=141e9, flops_per_s=989e12, bytes_per_s=4.8e12),
    "H100": Sheet(memory_bytes=80e9, flops_per_s=989e12, bytes_per_s=3.35e12),
    "A100": Sheet(memory_bytes=80e9, flops_per_s=312e12, bytes_per_s=2.039e12),
    "L40S": Sheet(memory_bytes=48e9, flops_per_s=362e12, bytes_per_s=864e9),
    "A100-40GB": Sheet(memory_bytes=40e9, flops_per_s=312e12, bytes_per_s=1.555e12),
    "L4": Sheet(memory_bytes=24e9, flops_per_s=121e12, bytes_per_s=300e9),
    "T4": Sheet(memory_bytes=16e9, flops_per_s=65e12, bytes_per_s=320e9),
    "V100": Sheet(memory_bytes=16e9, flops_per_s=125e12, bytes_per_s=900e9),
}
RELATIVES = {
    "A100-40GB": ("A100", "A100"),
    "L4": ("L40S", "L40S"),
    "T4": ("A100", "L40S"),
    "V100": ("A100", "A100"),
}
"""Device that nobody measured -> whose efficiency it is taken to have, and whose links."""


@dataclass(frozen=True, kw_only=True)
class Calls:
    """Timed calls of one kind; each [num_calls]."""

    flops: Array
    num_bytes: Array
    seconds: Array

    def errors(self, rate: Rate) -> Array:
        """Relative errors of a rate on them."""
        return relative_errors(rate, self.flops, self.num_bytes, self.seconds)


def calibrate(folder: Path) -> dict[str, DeviceFigures]:
    """Figures of every device of SHEETS.

    Raises: ConfigError where a table is missing.
    """
    calls = read_calls(folder)
    measured = {
        gpu: DeviceFigures(
            source="fitted to kernel times of vLLM 0.14 (ai-dynamo/aiconfigurator, Apache-2.0)",
            memory_bytes=SHEETS[gpu].memory_bytes,
            gemm=_rounded(_fit(calls[gpu, "gemm"])),
            prefill=_rounded(_fit(calls[gpu, "prefill"])),
            decode=_rounded(_fit(calls[gpu, "decode"])),
            all_reduce={
                n: _rounded(_fit(calls[gpu, f"all_reduce[{n}]"]))
                for n in (2, 4, 8)
                if (gpu, f"all_reduce[{n}]") in calls
            },
        )
        for gpu in sorted({gpu for gpu, _ in calls})
    }
    return measured | {device: _from_sheet(device, measured) for device in RELATIVES}


def rates_of(figures: DeviceFigures) -> dict[str, Rate]:
    """The rates of a device by kind of call."""
    reduces = {f"all_reduce[{n}]": rate for n, rate in figures.all_reduce.items()}
    return {"gemm": figures.gemm, "prefill": figures.prefill, "decode": figures.decode, **reduces}


def read_calls(folder: Path) -> dict[tuple[str, str], Calls]:
    """The tables as calls, by GPU and kind.

    Raises: ConfigError where a table is missing.
    """
    found: dict[tuple[str, str], Calls] = {}
    for gpu, t in _columns(folder / "op_gemm.csv.gz").items():
        m, n, k = t["m"], t["n"], t["k"]
        used = (n >= LEAST_SIDE) & (k >= LEAST_SIDE)
        moved = (m * k + k * n + m * n) * DTYPE_BYTES
        found[gpu, "gemm"] = _calls(2 * m * n * k, moved, t["seconds"], used)
    for gpu, t in _columns(folder / "op_attn_prefill.csv.gz").items():
        size, length, heads = t["batch_size"], t["isl"], t["num_heads"]
        pairs = size * length * (length + 1) / 2
        passed = 2 * (heads + t["num_key_value_heads"]) * t["head_dim"] * DTYPE_BYTES
        flops = 4 * pairs * heads * t["head_dim"]
        found[gpu, "prefill"] = _calls(flops, size * length * passed, t["seconds"])
    for gpu, t in _columns(folder / "op_attn_decode.csv.gz").items():
        context = t["batch_size"] * (t["context_len"] + 1)
        q, kv = (t[name] * t["head_dim"] for name in ("num_heads", "num_key_value_heads"))
        moved = 2 * (context * kv + t["batch_size"] * q) * DTYPE_BYTES
        found[gpu, "decode"] = _calls(4 * context * q, moved, t["seconds"])
    for gpu, t in _columns(folder / "op_allreduce.csv.gz", backend=BACKEND).items():
        for count in (2, 4, 8):
            sent = 2 * (count - 1) / count * t["message_bytes"]
            used = t["num_gpus"] == count
            if used.any():
                kind = f"all_reduce[{count}]"
                found[gpu, kind] = _calls(np.zeros_like(sent), sent, t["seconds"], used)
    return found


def run(prog: str, arguments: Sequence[str]) -> int:
    """Calibrate, print the errors, write devices.json."""
    parser = Parser(
        prog,
        "Fit the figures of devices for the roofline to tables of kernel times, and say how far "
        "off it is.",
        [f"{prog} ../shared/data/profiles --out config/profiles/roofline/devices.json"],
    )
    parser.add_argument("folder", type=Path, help="with the tables")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args(arguments)
    figures = calibrate(options.folder)
    Console(soft_wrap=True).print(error_table(figures, read_calls(options.folder)))
    if options.out is not None:
        write_record(options.out, figures)
    return DONE


def error_table(
    figures: Mapping[str, DeviceFigures], calls: Mapping[tuple[str, str], Calls]
) -> Table:
    """How far the roofline is from each table."""
    table = Table(title="relative error of the roofline", title_justify="left")
    for name in ("device", "calls of", "rows", "median", "P95"):
        table.add_column(name, justify="right")
    for (gpu, kind), found in calls.items():
        errors = found.errors(rates_of(figures[gpu])[kind])
        median, p95 = np.quantile(errors, [0.5, 0.95])
        table.add_row(gpu, kind, str(len(errors)), f"{median:.1%}", f"{p95:.1%}")
    return table


def _columns(path: Path, **only: str) -> dict[str, dict[str, Array]]:
    """GPU -> column -> numbers, and `seconds`; of the rows whose texts are those of `only`."""
    rows: dict[str, list[dict[str, str]]] = {}
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if all(row.pop(column) == text for column, text in only.items()):
                    rows.setdefault(row.pop("gpu"), []).append(row)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    return {
        gpu: {
            ("seconds" if column == "latency_ms" else column): np.array(
                [float(row[column]) for row in found]
            )
            * (1e-3 if column == "latency_ms" else 1.0)
            for column in found[0]
        }
        for gpu, found in rows.items()
    }


def _calls(
    flops: Array, num_bytes: Array, seconds: Array, used: NDArray[np.bool_] | None = None
) -> Calls:
    if used is None:
        return Calls(flops=flops, num_bytes=num_bytes, seconds=seconds)
    return Calls(flops=flops[used], num_bytes=num_bytes[used], seconds=seconds[used])


def _fit(calls: Calls) -> Rate:
    return fit_rate(calls.flops, calls.num_bytes, calls.seconds)


def _from_sheet(device: str, measured: Mapping[str, DeviceFigures]) -> DeviceFigures:
    """What a device promises, times what its relative reaches of its own promise."""
    name, linked = RELATIVES[device]
    own, other, relative = SHEETS[device], SHEETS[name], measured[name]

    def scaled(rate: Rate) -> Rate:
        return _rounded(
            Rate(
                overhead_s=rate.overhead_s,
                flops_per_s=rate.flops_per_s * own.flops_per_s / other.flops_per_s,
                bytes_per_s=rate.bytes_per_s * own.bytes_per_s / other.bytes_per_s,
            )
        )

    return DeviceFigures(
        source=f"data sheet, not measured: efficiency of {name}, all-reduce of {linked}",
        memory_bytes=own.memory_bytes,
        gemm=scaled(relative.gemm),
        prefill=scaled(relative.prefill),
        decode=scaled(relative.decode),
        all_reduce=measured[linked].all_reduce,
    )


def _rounded(rate: Rate) -> Rate:
    """Three digits: more say nothing, and files stay readable."""
    return Rate(
        overhead_s=float(f"{rate.overhead_s:.3g}"),
        flops_per_s=float(f"{rate.flops_per_s:.3g}"),
        bytes_per_s=float(f"{rate.bytes_per_s:.3g}"),
    )
