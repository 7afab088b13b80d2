"""This engine beside another one on this machine's CPU, in one sitting.

How it is kept fair:

- Rounds alternate which engine goes first, so that a machine that slows down (heat, neighbours) slows
  both down. Medians over the rounds; the ratio's spread is shown.
- The same shapes in bfloat16 with random weights, the same cores and number of threads, the same
  lengths of random token ids, the same number of tokens out.
- A decode step is (time of 1 + N tokens - time of 1 token) / N, prefill the time of 1 token: whole
  calls of ours, sampling and scheduling included.
- Ours runs as `LLM` does by default on a CPU, prefix caching off (a second run would skip its prefill).
"""

from __future__ import annotations

import contextlib
import os
import random
import statistics
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
from rich.console import Console

from chitu_like.bench.engine_run import NO_PREFIX_CACHE, EngineRun
from chitu_like.bench.provenance import Provenance, provenance
from chitu_like.bench.random_prompts import random_prompts
from chitu_like.bench.result_files import write_json, write_text
from chitu_like.cli.command_line import Parser, positive_int
from chitu_like.config.load import load_config
from chitu_like.config.schema import ModelsConfig
from chitu_like.core.ending import DONE
from chitu_like.core.errors import ConfigError, UnsupportedError
from chitu_like.llm import LLM
from chitu_like.worker.device import device_facts

Prompts = list[list[int]]


class TimedRun(Protocol):
    """An engine whose runs can be timed."""

    def seconds(self, prompts: Sequence[Sequence[int]], num_tokens: int) -> float:
        """Seconds to answer all prompts at once with num_tokens tokens each, greedily."""
        ...


class Peer(TimedRun, Protocol):
    """The engine that ours stands beside.

    Attributes:
        name: as the table shows it.
        version: of its software.
    """

    name: str
    version: str


OpenPeer = Callable[[ModelsConfig, int], Peer]
"""The peer with a model, and the number of threads that ours has as well."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One line of the table.

    Attributes:
        name: as shown.
        batch_size: prompts at once.
        prompt_len: tokens of each.
        num_steps: decode steps that are timed; 0: the prefill is.
        target: ratio to reach, if one was set.
    """

    name: str
    batch_size: int
    prompt_len: int
    num_steps: int
    target: float | None = None


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """Medians of one case; a ratio above 1 means that ours is faster.

    Attributes:
        case: what was measured.
        ours_s: seconds of a step, or of the prefill.
        theirs_s: the same of the peer.
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


def compare(
    prog: str,
    arguments: Sequence[str],
    options: Namespace,
    cases: Sequence[Case],
    open_peer: OpenPeer,
) -> int:
    """Measure, print the table, write it where asked to.

    Args:
        prog: the benchmark as typed.
        arguments: its arguments.
        options: the parsed ones, of `add_options`.
        cases: lines of the table.
        open_peer: makes the other engine, after ours has its threads.
    """
    keys = [
        f"models={options.model}",
        "models.load_format=dummy",
        "dtype=bfloat16",
        "infer.device=cpu",
        NO_PREFIX_CACHE,
    ]
    facts = device_facts("cpu")
    console = Console(soft_wrap=True, highlight=False)
    load = os.getloadavg()[0]  # others on the machine spoil a number: it stands beside the table
    with on_cores(options.threads), LLM(*keys) as llm:
        num_threads = torch.get_num_threads()  # as the engine set it, for this whole process
        peer = open_peer(load_config(keys).models, num_threads)
        comparison = Comparison(EngineRun(llm), peer, llm.info.vocab_size, options.seed)
        results = [
            comparison.measure(case, options.rounds, lambda text: console.print(f"  {text}"))
            for case in cases
        ]
    origin = provenance(prog, arguments, facts)
    software = (
        f"torch {torch.__version__}, {peer.name} {peer.version}, {num_threads} threads, "
        f"load {load:.1f} before"
    )
    table = markdown(results, options.model, peer.name, origin, software)
    console.print(table, markup=False)
    if options.markdown is not None:
        write_text(options.markdown, table)
    if options.json is not None:
        rows = [asdict(result) for result in results]
        found = {"benchmark": f"cpu-{peer.name}", "peer": peer.version, "threads": num_threads}
        write_json(options.json, {**found, **asdict(origin), "rows": rows})
    return DONE


class Comparison:
    """Runs both engines in turn.

    Args:
        ours: this package.
        theirs: the peer.
        vocab_size: of both.
        seed: of the prompts.
    """

    def __init__(self, ours: TimedRun, theirs: Peer, vocab_size: int, seed: int) -> None:
        self._engines: tuple[TimedRun, TimedRun] = (ours, theirs)
        self._peer_name = theirs.name
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
                f"{self._peer_name} {theirs * 1e3:.2f} ms, {theirs / ours:.2f}x"
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


@contextlib.contextmanager
def on_cores(number: int | None) -> Iterator[None]:
    """Give what starts meanwhile, threads and processes, the first `number` of this one's cores.

    Args:
        number: of cores; None: all it has.

    Raises: ConfigError if there are fewer, UnsupportedError where cores cannot be chosen.
    """
    if number is None:
        yield
        return
    if not hasattr(os, "sched_setaffinity"):
        raise UnsupportedError("--threads chooses cores, which only Linux can: leave it out")
    cores = os.sched_getaffinity(0)
    if number > len(cores):
        raise ConfigError(f"--threads {number}: this process may use {len(cores)} cores")
    os.sched_setaffinity(0, sorted(cores)[:number])
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def markdown(
    results: Sequence[CaseResult], model: str, peer: str, origin: Provenance, software: str
) -> str:
    """The table, ready for benchmarks/RESULTS.md; targets where one was set."""
    has_targets = any(result.case.target is not None for result in results)
    lines = [
        f"**{model}, bfloat16, dummy weights, CPU, beside {peer}** ({origin.date}, "
        f"{origin.machine}; {software}; commit {origin.commit})",
        "",
        f"`{origin.command}`",
        "",
        f"| case | chitu_like | {peer} | ratio (rounds) |" + " target |" * has_targets,
        "|---|---|---|---|" + "---|" * has_targets,
    ]
    for result in results:
        ours, theirs = (
            f"{seconds * 1e3:.1f} ms, {result.tokens_a_pass / seconds:.1f} tokens/s"
            for seconds in (result.ours_s, result.theirs_s)
        )
        spread = f"{result.lowest_ratio:.2f} to {result.highest_ratio:.2f}"
        target = "-" if result.case.target is None else f"{result.case.target:.1f}x"
        lines.append(
            f"| {result.case.name} | {ours} | {theirs} | **{result.ratio:.2f}x** ({spread}) |"
            + f" {target} |" * has_targets
        )
    return "\n".join(lines) + "\n"


def add_options(parser: Parser, names: Sequence[str]) -> None:
    """What every comparison takes; `names` are those of its cases."""
    parser.add_argument(
        "--model", default="qwen2.5-0.5b", help="entry of config/models/ (default: qwen2.5-0.5b)"
    )
    parser.add_argument(
        "--cases",
        nargs="+",
        choices=names,
        default=list(names),
        help="which lines of the table (default: all)",
    )
    parser.add_argument("--rounds", type=positive_int, default=5, metavar="N")
    parser.add_argument(
        "--threads", type=positive_int, metavar="N", help="of both, and cores (default: all)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the prompts")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
