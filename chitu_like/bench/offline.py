"""The engine in this process, without a server: what a step costs, and workloads of many requests.

`forward`: for each batch size and context length, the speed of prefill (all prompts at once, one token
out) and the time of a decode step (the same with N tokens more, the difference divided by N).

`workload`: requests of random lengths all at once, as nano-vllm's benchmark does (256 prompts of 100
to 1024 tokens, 100 to 1024 tokens out, no end-of-text): the whole time, tokens/s.

`suite`: the fixed workloads of suite.py, each figure beside the floor that this device's measured rates
set, and with `--peer FILE` beside another engine's.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console

from chitu_like.bench.engine_run import NO_PREFIX_CACHE, EngineRun, with_defaults
from chitu_like.bench.model_floor import ModelFloor
from chitu_like.bench.offline_forward import forward_table, sweep
from chitu_like.bench.offline_workload import run_workload, workload_table
from chitu_like.bench.provenance import provenance
from chitu_like.bench.result_files import write_json
from chitu_like.bench.roof import measure_roof
from chitu_like.bench.serving_report import check_plotting
from chitu_like.bench.suite import Figure, Suite, SuiteRun
from chitu_like.bench.suite_report import check_parts, plot_suite, read_peer, suite_table
from chitu_like.cli.command_line import Parser, positive_int, positive_ints
from chitu_like.config.device_facts import DeviceFacts
from chitu_like.config.load import load_config
from chitu_like.config.resolve import resolve
from chitu_like.core.ending import DONE
from chitu_like.llm import LLM
from chitu_like.model_files import read_model_files
from chitu_like.worker.device import device_facts

ROOM = ("infer.max_seq_len=8192", "infer.max_reqs=256")
"""For every part of the suite."""


def run(prog: str, arguments: Sequence[str]) -> int:
    """Measure, print a table, write JSON if asked to."""
    options = _parser(prog).parse_intermixed_args(arguments)
    defaults = (NO_PREFIX_CACHE, *(ROOM if options.mode == "suite" else ()))
    overrides = with_defaults(options.overrides, *defaults)
    facts = device_facts(load_config(overrides).infer.device)
    console = Console(soft_wrap=True)
    modes = {"forward": _forward, "workload": _workload, "suite": _suite}
    results = modes[options.mode](overrides, facts, options, console)
    if options.json is not None:
        origin = asdict(provenance(prog, arguments, facts))
        head = {"benchmark": "offline", "mode": options.mode, "engine": "chitu_like"}
        write_json(options.json, {**head, **origin, **results})
    return DONE


def _forward(
    overrides: Sequence[str], facts: DeviceFacts, options: argparse.Namespace, console: Console
) -> Mapping[str, object]:
    with LLM(*overrides) as llm:
        rng = random.Random(options.seed)
        rows = list(sweep(EngineRun(llm), rng, llm.info.vocab_size, options))
    console.print(forward_table(rows))
    return {"rows": [asdict(row) for row in rows]}


def _workload(
    overrides: Sequence[str], facts: DeviceFacts, options: argparse.Namespace, console: Console
) -> Mapping[str, object]:
    with LLM(*overrides) as llm:
        rng = random.Random(options.seed)
        row = run_workload(EngineRun(llm), rng, llm.info.vocab_size, options)
    console.print(workload_table(row))
    return {"rows": [asdict(row)]}


def _suite(
    overrides: Sequence[str], facts: DeviceFacts, options: argparse.Namespace, console: Console
) -> Mapping[str, object]:
    suite = Suite()
    check_parts(suite, options.parts, options.batches)
    if options.plot is not None:
        check_plotting()
    peer = None if options.peer is None else read_peer(options.peer)
    floor = _floor_of(overrides, facts)
    figures: list[Figure] = []
    with LLM(*overrides) as llm:
        suite_run = SuiteRun(
            EngineRun(llm), suite, llm.info.vocab_size, floor, batches=options.batches
        )
        suite_run.check_room(options.parts)
        suite_run.warm_up()
        measures = {
            "steps": suite_run.steps,
            "forwards": suite_run.forwards,
            "nano": suite_run.nano,
        }
        for part in options.parts:
            for figure in measures[part]():
                console.print(f"{figure.name} {figure.value:.3f}", highlight=False)
                figures.append(figure)
    console.print(suite_table(figures, peer))
    if options.plot is not None:
        plot_suite(options.plot, figures, peer)
    return {
        "roof": asdict(floor.roof),
        "figures": {figure.name: figure.value for figure in figures},
        "floors": {figure.name: figure.floor for figure in figures},
    }


def _floor_of(overrides: Sequence[str], facts: DeviceFacts) -> ModelFloor:
    config = load_config(overrides)
    spec = read_model_files(config).spec
    dtype: torch.dtype = getattr(torch, resolve(config, facts, spec).dtype)
    roof = measure_roof(torch.device(facts.device), dtype)
    return ModelFloor(spec=spec, roof=roof, dtype_bytes=dtype.itemsize)


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog,
        "Measure the engine in this process. `forward` sweeps batch size and context length; "
        "`workload` answers requests of random lengths; `suite` runs the fixed workloads that engines "
        "are compared by, beside the device's floor. Token ids are random, answers have exact "
        "lengths; prefix caching is off unless you set it.",
        [
            f"{prog} forward --batches 1,8 --contexts 128,1024 models=qwen3-0.6b "
            "models.load_format=dummy",
            f"{prog} workload --num-prompts 32 --input 10-100 --output 10-100",
            f"{prog} suite --peer vllm.json --json ours.json models=llama-3-8b "
            "models.load_format=dummy",
        ],
    )
    parser.add_argument("mode", choices=("forward", "workload", "suite"), help="what to measure")
    parser.add_argument("--seed", type=int, default=0, help="of prompts and lengths (default: 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument(
        "--batches",
        type=positive_ints,
        metavar="B,...",
        help="of `forward` and of the suite's steps",
    )
    forward = parser.add_argument_group("forward")
    forward.add_argument("--contexts", type=positive_ints, default=[128, 512], metavar="L,...")
    forward.add_argument("--decode-steps", type=positive_int, default=32, metavar="N")
    forward.add_argument("--repeats", type=positive_int, default=3, metavar="N")
    workload = parser.add_argument_group("workload")
    workload.add_argument("--num-prompts", type=positive_int, default=256, metavar="N")
    workload.add_argument("--input", type=length_range, default=(100, 1024), metavar="LOW-HIGH")
    workload.add_argument("--output", type=length_range, default=(100, 1024), metavar="LOW-HIGH")
    suite = parser.add_argument_group("suite")
    suite.add_argument(
        "--parts",
        type=lambda text: text.split(","),
        default=["steps", "forwards", "nano"],
        metavar="PART,...",
        help="of steps, forwards, nano (default: all)",
    )
    suite.add_argument(
        "--peer", type=Path, metavar="FILE", help="JSON of another engine's figures, shown beside"
    )
    suite.add_argument("--plot", type=Path, metavar="FILE", help="a picture (extra: plot)")
    parser.add_overrides()
    return parser


def length_range(text: str) -> tuple[int, int]:
    """An argument LOW-HIGH, or one number for both."""
    low, _, high = text.partition("-")
    found = positive_int(low), positive_int(high or low)
    if found[0] > found[1]:
        raise argparse.ArgumentTypeError(f"{text!r}: the first number is the larger one")
    return found
