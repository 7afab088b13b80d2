"""`chitu-like bench NAME`: the benchmarks of chitu_like/bench, as the scripts in benchmarks/ run them."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from typing import cast

from chitu_like.cli.command_line import CommandModule
from chitu_like.core.ending import DONE
from chitu_like.core.errors import ConfigError

BENCHMARKS = {
    "serving": (
        "chitu_like.bench.serving",
        "load on any OpenAI-compatible server: TTFT, TPOT, ...",
    ),
    "offline": (
        "chitu_like.bench.offline",
        "the engine in this process: prefill, decode, workloads, beside the device's floor",
    ),
    "ops": (
        "chitu_like.bench.ops",
        "every op, matrix and attention backend beside the device's measured roof",
    ),
    "idle": (
        "chitu_like.bench.gpu_idle",
        "how idle a GPU is while it decodes, and between which kernels",
    ),
    "startup": (
        "chitu_like.bench.startup",
        "from the start of a service to its first answers, phase by phase",
    ),
    "control": (
        "chitu_like.bench.control",
        "what a step costs beside the model: scheduler, channel",
    ),
    "front-end": (
        "chitu_like.bench.front_end",
        "what a token costs on its way to the client, and when that falls behind",
    ),
    "simulator": (
        "chitu_like.bench.simulator",
        "how fast simulations are: layers on 24 machines, and instances",
    ),
    "cpu-transformers": (
        "chitu_like.bench.cpu_transformers",
        "the engine beside transformers on this CPU",
    ),
    "llama-cpp": (
        "chitu_like.bench.llama_cpp",
        "the engine beside llama.cpp on this CPU",
    ),
}


def run(prog: str, arguments: Sequence[str]) -> int:
    """Run one benchmark."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview(prog))
        return DONE
    name, *rest = arguments
    if name not in BENCHMARKS:
        close = difflib.get_close_matches(name, BENCHMARKS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"use one of {', '.join(BENCHMARKS)}"
        raise ConfigError(f"{name!r} is no benchmark: {hint}")
    module = cast(CommandModule, importlib.import_module(BENCHMARKS[name][0]))
    return module.run(f"{prog} {name}", rest)


def _overview(prog: str) -> str:
    width = max(map(len, BENCHMARKS))
    lines = [f"  {name:<{width}}  {summary}" for name, (_, summary) in BENCHMARKS.items()]
    return "\n".join(
        [
            f"usage: {prog} NAME [options]",
            "",
            "Measure. Each prints a table and can write JSON.",
            "",
            "benchmarks:",
            *lines,
            "",
            "examples:",
            f"  {prog} serving --num-requests 64 --arrival poisson --rate 4",
            f"  {prog} offline forward models=qwen3-0.6b models.load_format=dummy",
            f"  {prog} NAME --help",
        ]
    )
