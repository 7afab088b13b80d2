"""This engine beside `transformers` on this machine's CPU: decode at batch 1 and 16, prefill of 512.

How it is kept fair:

- One process and one sitting. Rounds alternate which engine goes first, so that a machine that slows
  down (heat, neighbours) slows both down. Medians over the rounds; the ratio's spread is shown.
- The same shapes in bfloat16 with random weights, the same number of threads, the same prompts of
  token ids, the same number of tokens out, all greedy, no end-of-text.
- transformers runs as its documentation says: AutoModelForCausalLM, SDPA attention, its default
  (dynamic) cache, `generate` under torch.inference_mode. Batch 16 is a static batch of equally long
  prompts, its best case: no padding, nobody waits. With no end-of-text token set it pays for no stop
  check either.
- A decode step is (time of 1 + N tokens - time of 1 token) / N, prefill the time of 1 token: whole
  calls of both, with all their overhead. Sampling and scheduling are part of ours.
- Ours runs as `LLM` does by default on a CPU, prefix caching off (a second run would skip its prefill).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
from rich.console import Console

from chitu_like.bench.engine_run import NO_PREFIX_CACHE, EngineRun
from chitu_like.bench.provenance import Provenance, provenance
from chitu_like.bench.random_prompts import random_prompts
from chitu_like.bench.result_files import write_json, write_text
from chitu_like.bench.transformers_run import TransformersRun
from chitu_like.cli.command_line import Parser, positive_int
from chitu_like.config.architecture import read_hf_config
from chitu_like.config.load import load_config
from chitu_like.core.ending import DONE
from chitu_like.core.errors import UnsupportedError
from chitu_like.llm import LLM
from chitu_like.worker.device import device_facts

Prompts = list[list[int]]


class TimedRun(Protocol):
    """An engine whose runs can be timed."""

    def seconds(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> float:
        """Seconds to answer all prompts at once with num_tokens tokens each, greedily."""
        ...


@dataclass(frozen=True, kw_only=True)
class Case:
    """One line of the table.

    Attributes:
        name: as shown.
        batch_size: prompts at once.
        prompt_len: tokens of each.
        num_steps: decode steps that are timed; 0: the prefill is.
        target: ratio to reach.
    """

    name: str
    batch_size: int
    prompt_len: int
    num_steps: int
    target: float


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """Medians of one case; a ratio above 1 means that ours is faster.

    Attributes:
        case: what was measured.
        ours_s: seconds of a step, or of the prefill.
        theirs_s: the same of transformers.
        ratio: theirs_s / ours_s.
        lowest_ratio, highest_ratio: over the rounds.
    """

    case: Case
    ours_s: float
    theirs_s: float
    ratio: float
    lowest_ratio: float
    highest_ratio: float

    @property
    def tokens_a_pass(self) -> int:
        """Tokens that the measured time brought forward."""
        tokens = 1 if self.case.num_steps else self.case.prompt_len
        return tokens * self.case.batch_size


def run(prog: str, arguments: Sequence[str]) -> int:
    """Measure, print the table, write it where asked to."""
    options = _parser(prog).parse_args(arguments)
    if importlib.util.find_spec("transformers") is None:
        raise UnsupportedError(
            "the peer of this benchmark is not installed: pip install 'chitu-like[test]'"
        )
    keys = [
        f"models={options.model}",
        "models.load_format=dummy",
        "dtype=bfloat16",
        "infer.device=cpu",
        NO_PREFIX_CACHE,
    ]
    hf_config = read_hf_config(load_config(keys).models)
    facts = device_facts("cpu")
    console = Console(soft_wrap=True, highlight=False)
    load = os.getloadavg()[0]  # others on the machine spoil a number: it stands beside the table
    with LLM(*keys) as llm:
        num_threads = torch.get_num_threads()  # as the engine set it, for this whole process
        theirs = TransformersRun(hf_config, torch.bfloat16)
        compare = Comparison(EngineRun(llm), theirs, llm.info.vocab_size, options.seed)
        results = [
            compare.measure(case, options.rounds, lambda text: console.print(f"  {text}"))
            for case in _cases(options)
        ]
    origin = provenance(prog, arguments, facts)
    peers = (
        f"torch {torch.__version__}, transformers {theirs.version}, {num_threads} threads, "
        f"load {load:.1f} before"
    )
    table = markdown(results, options.model, origin, peers)
    console.print(table, markup=False)
    if options.markdown is not None:
        write_text(options.markdown, table)
    if options.json is not None:
        rows = [asdict(result) for result in results]
        write_json(options.json, {"benchmark": "cpu-transformers", **asdict(origin), "rows": rows})
    return DONE


class Comparison:
    """Runs both engines in turn.

    Args:
        ours: this package.
        theirs: the peer.
        vocab_size: of both.
        seed: of the prompts.
    """

    def __init__(self, ours: TimedRun, theirs: TimedRun, vocab_size: int, seed: int) -> None:
        self._engines = (ours, theirs)
        self._vocab_size = vocab_size
        self._rng = random.Random(seed)

    def measure(self, case: Case, num_rounds: int, tell: Callable[[str], None]) -> CaseResult:
        """Warm both up, then alternate.

        Args:
            case: what to measure.
            num_rounds: times that each engine is measured.
            tell: shows a line of progress.
        """
        warm_up = self._prompts(case)
        for engine in self._engines:
            _time(engine, warm_up, min(case.num_steps, 2))
        seconds: tuple[list[float], list[float]] = ([], [])
        for number in range(num_rounds):
            prompts = self._prompts(case)
            for index in (0, 1) if number % 2 == 0 else (1, 0):
                seconds[index].append(_time(self._engines[index], prompts, case.num_steps))
            ours, theirs = seconds[0][-1], seconds[1][-1]
            tell(
                f"{case.name}, round {number + 1}: {ours * 1e3:.2f} ms, "
                f"transformers {theirs * 1e3:.2f} ms, {theirs / ours:.2f}x"
            )
        ratios = [theirs / ours for ours, theirs in zip(*seconds, strict=True)]
        ours_s, theirs_s = statistics.median(seconds[0]), statistics.median(seconds[1])
        return CaseResult(
            case=case,
            ours_s=ours_s,
            theirs_s=theirs_s,
            ratio=theirs_s / ours_s,
            lowest_ratio=min(ratios),
            highest_ratio=max(ratios),
        )

    def _prompts(self, case: Case) -> Prompts:
        return random_prompts(self._rng, [case.prompt_len] * case.batch_size, self._vocab_size)


def _time(engine: TimedRun, prompts: Prompts, num_steps: int) -> float:
    """Seconds of one decode step, or of the prefill where num_steps is 0."""
    first_s = engine.seconds(prompts, 1)
    if not num_steps:
        return first_s
    return (engine.seconds(prompts, 1 + num_steps) - first_s) / num_steps


def markdown(results: Sequence[CaseResult], model: str, origin: Provenance, software: str) -> str:
    """The table, ready for benchmarks/RESULTS.md."""
    lines = [
        f"**{model}, bfloat16, dummy weights, CPU, beside transformers** ({origin.date}, "
        f"{origin.machine}; {software}; commit {origin.commit})",
        "",
        f"`{origin.command}`",
        "",
        "| case | chitu_like | transformers | ratio (rounds) | target |",
        "|---|---|---|---|---|",
    ]
    for result in results:
        ours, theirs = (
            f"{seconds * 1e3:.1f} ms, {result.tokens_a_pass / seconds:.1f} tokens/s"
            for seconds in (result.ours_s, result.theirs_s)
        )
        spread = f"{result.lowest_ratio:.2f} to {result.highest_ratio:.2f}"
        lines.append(
            f"| {result.case.name} | {ours} | {theirs} | **{result.ratio:.2f}x** ({spread}) | "
            f"{result.case.target:.1f}x |"
        )
    return "\n".join(lines) + "\n"


def _cases(options: argparse.Namespace) -> list[Case]:
    steps, length = options.decode_steps, options.prompt_len
    every = {
        "decode1": Case(
            name="decode, batch 1", batch_size=1, prompt_len=length, num_steps=steps, target=1.3
        ),
        "decode16": Case(
            name="decode, batch 16", batch_size=16, prompt_len=length, num_steps=steps, target=1.5
        ),
        "prefill512": Case(
            name="prefill, 512 tokens", batch_size=1, prompt_len=512, num_steps=0, target=1.0
        ),
    }
    return [every[name] for name in options.cases or every]


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog,
        "Compare this engine with transformers' generate on this machine's CPU: the same shapes "
        "with random weights in bfloat16, the same token ids, in alternating rounds of one "
        "sitting. Prints a table for benchmarks/RESULTS.md. Leave the machine alone meanwhile.",
        [prog, f"{prog} --model qwen3-0.6b --rounds 7 --json result.json"],
    )
    parser.add_argument(
        "--model", default="qwen2.5-0.5b", help="entry of config/models/ (default: qwen2.5-0.5b)"
    )
    parser.add_argument(
        "--cases",
        nargs="+",
        choices=("decode1", "decode16", "prefill512"),
        help="which lines of the table (default: all)",
    )
    parser.add_argument("--rounds", type=positive_int, default=5, metavar="N")
    parser.add_argument("--decode-steps", type=positive_int, default=48, metavar="N")
    parser.add_argument("--prompt-len", type=positive_int, default=32, metavar="N")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    return parser
