"""One layout of ranks: what a decode step and prefill cost, and whether its tokens are one rank's.

Run it under torchrun once for each layout, and compare. `speed`: for each batch size ONE run of
prompts of equal length. Prefill lasts until every request has its first token; from then on tokens
are counted for a number of steps, in each of which every request gets one. So a step of a pipeline is
the time in which all its micro-batches pass. `tokens`: greedy and sampled tokens of fixed prompts,
printed as a digest; `--expected FILE` compares them with those another layout wrote with `--json`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from chitu_like.bench.engine_run import NO_PREFIX_CACHE, EngineRun, with_defaults
from chitu_like.bench.provenance import provenance
from chitu_like.bench.random_prompts import random_prompts
from chitu_like.bench.result_files import write_json
from chitu_like.cli.command_line import Parser, positive_int, positive_ints
from chitu_like.config.load import load_config
from chitu_like.core.ending import DONE, FAILED
from chitu_like.core.errors import ConfigError, PeerError
from chitu_like.core.sampling_params import SamplingParams
from chitu_like.llm import LLM
from chitu_like.worker.device import device_facts

PROMPT_LENGTHS = (3, 17, 64, 130, 5, 33, 257, 80)  # of `tokens`: chunks and batches of all sorts
MIN_CHUNK = 512  # prompt tokens of a step at least; an early request decodes while others prefill


@dataclass(frozen=True, kw_only=True)
class SpeedRow:
    """One batch size."""

    batch_size: int
    context: int
    prefill_tokens_per_s: float
    decode_step_ms: float
    decode_tokens_per_s: float


def run(prog: str, arguments: Sequence[str]) -> int:
    """Measure or compare; all ranks call this, rank 0 prints."""
    options = _parser(prog).parse_intermixed_args(arguments)
    overrides = with_defaults(options.overrides, NO_PREFIX_CACHE)
    infer = load_config(overrides).infer
    layout = f"tp {infer.tp_size} x pp {infer.pp_size}"
    console = Console(soft_wrap=True)
    start_s = time.perf_counter()
    with LLM(*overrides, progress=False) as llm:
        start_s = time.perf_counter() - start_s
        found: object
        code = DONE
        if options.mode == "speed":
            rows = _speed(llm, infer.pp_size, options)
            console.print(_table(f"{layout}, ready after {start_s:.1f} s", rows))
            found = [asdict(row) for row in rows]
        else:
            found = tokens = _tokens(llm, options.output_len)
            code = _compare(tokens, options.expected, layout, console)
    if options.json is not None:
        origin = asdict(provenance(prog, arguments, device_facts(infer.device)))
        head = {"benchmark": "parallel", "mode": options.mode, "layout": layout, "start_s": start_s}
        write_json(options.json, {**head, **origin, "found": found})
    return code


def _speed(llm: LLM, num_stages: int, options: argparse.Namespace) -> list[SpeedRow]:
    rng = random.Random(0)

    def measure(batch_size: int, num_steps: int) -> SpeedRow:
        prompts = random_prompts(rng, [options.context] * batch_size, llm.info.vocab_size)
        return measure_speed(llm, prompts, num_steps=num_steps, num_stages=num_stages)

    for batch_size in (1, 8):  # warm up
        measure(batch_size, 4)
    return [measure(batch_size, options.decode_steps) for batch_size in options.batches]


def measure_speed(
    llm: LLM,
    prompts: Sequence[Sequence[int]],
    *,
    num_steps: int,
    num_stages: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> SpeedRow:
    """Run prompts of one length at once.

    Args:
        llm: without prefix cache.
        prompts: of equal length.
        num_steps: decode steps to take the time of.
        num_stages: of the pipeline.
        clock: seconds that never go back.

    Raises:
        CapacityError: they do not fit at once.
        PeerError: they did not decode together.
    """
    batch_size, context = len(prompts), len(prompts[0])
    slack = batch_size * context // MIN_CHUNK + num_steps
    EngineRun(llm).check_room(batch_size, context + 1 + slack)
    params = SamplingParams(temperature=0.0, max_tokens=1 + slack, ignore_eos=True)
    num_tokens = llm.stats().num_output_tokens
    window = DecodeWindow(batch_size, num_stages, num_steps, clock, num_tokens)
    for _ in llm.generate_each(
        prompts, params, stop_when=lambda: window.is_over(llm.stats().num_output_tokens)
    ):
        pass
    step_s = window.step_s()
    return SpeedRow(
        batch_size=batch_size,
        context=context,
        prefill_tokens_per_s=batch_size * context / window.prefill_s(),
        decode_step_ms=step_s * 1e3,
        decode_tokens_per_s=batch_size / step_s,
    )


class DecodeWindow:
    """Watches the count of output tokens, step by step, for the time in which all requests decode.

    An engine step brings a token to each request of a micro-batch, of which there are as many as
    stages; whoever prefills gets none. So all decode once that many steps in a row brought as many
    tokens as there are requests.

    Args:
        num_requests: that run.
        num_stages: of the pipeline.
        num_steps: tokens of each request to take the time of.
        clock: seconds that never go back; the prefill begins now.
        num_tokens: the count now.
    """

    def __init__(
        self,
        num_requests: int,
        num_stages: int,
        num_steps: int,
        clock: Callable[[], float],
        num_tokens: int,
    ) -> None:
        self._num_requests = num_requests
        self._num_steps = num_steps
        self._clock = clock
        self._last = num_tokens
        self._news: deque[int] = deque(maxlen=min(num_stages, num_requests))
        self._begin_s = clock()
        self._open: tuple[float, int] | None = None  # when all decoded first, and the count then
        self._step_s: float | None = None

    def is_over(self, num_tokens: int) -> bool:
        """Take the count after a step; True once the time was taken."""
        now_s = self._clock()
        news, self._last = num_tokens - self._last, num_tokens
        self._news.append(news)
        if self._open is None:
            if sum(self._news) == self._num_requests:
                self._open = (now_s, num_tokens)
            return False
        opened_s, first = self._open
        num_rounds = (num_tokens - first) / self._num_requests
        if num_rounds < self._num_steps:
            return False
        self._step_s = (now_s - opened_s) / num_rounds
        return True

    def prefill_s(self) -> float:
        """Seconds until every request had a token. Raises: PeerError where that was never seen."""
        if self._open is None:
            raise PeerError(f"{self._num_requests} requests never decoded together")
        return self._open[0] - self._begin_s

    def step_s(self) -> float:
        """Seconds in which each request gets a token. Raises: PeerError where they ended before."""
        if self._step_s is None:
            raise PeerError(f"{self._num_requests} requests did not decode together for long")
        return self._step_s


def _tokens(llm: LLM, output_len: int) -> list[list[int]]:
    """Answers to fixed prompts, every other one sampled."""
    rng = random.Random(0)
    prompts = random_prompts(rng, PROMPT_LENGTHS, llm.info.vocab_size)
    params = [
        SamplingParams(temperature=index % 2, seed=index, max_tokens=output_len, ignore_eos=True)
        for index in range(len(prompts))
    ]
    answers = llm.generate(prompts, params)
    return [answer.outputs[0].token_ids for answer in answers]


def _compare(found: list[list[int]], expected: Path | None, layout: str, console: Console) -> int:
    """Say what the tokens are, and whether they are the expected ones; the exit code."""
    digest = hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]
    told = f"{layout}: {sum(map(len, found))} tokens, digest {digest}"
    if expected is None:
        console.print(told)
        return DONE
    try:
        others = json.loads(expected.read_text())["found"]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"--expected {expected} holds no tokens: {error}") from None
    num_equal = sum(ours == theirs for ours, theirs in zip(found, others, strict=True))
    console.print(f"{told}; {num_equal} of {len(found)} answers as expected")
    return DONE if num_equal == len(found) else FAILED


def _table(title: str, rows: Sequence[SpeedRow]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in ("batch", "context", "prefill tok/s", "decode step ms", "decode tok/s"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            f"{row.batch_size}",
            f"{row.context}",
            f"{row.prefill_tokens_per_s:.0f}",
            f"{row.decode_step_ms:.2f}",
            f"{row.decode_tokens_per_s:.1f}",
        )
    return table


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog,
        "Measure one layout of ranks, or print its tokens and compare them with another's. Prefix "
        "caching is off unless you set it. Layouts add in different orders: only in float32 are "
        "their tokens the same ones.",
        [
            f"torchrun --nproc_per_node 2 {prog} speed models=llama-3-8b models.load_format=dummy "
            "infer.tp_size=2",
            f"{prog} tokens dtype=float32 --json one.json",
            f"torchrun --nproc_per_node 2 {prog} tokens dtype=float32 --expected one.json "
            "infer.tp_size=2",
        ],
    )
    parser.add_argument("mode", choices=("speed", "tokens"), help="what to do")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    speed = parser.add_argument_group("speed")
    speed.add_argument(
        "--batches",
        type=positive_ints,
        default=[1, 8, 32],
        metavar="B,...",
        help="requests at once (default: 1,8,32)",
    )
    tokens = parser.add_argument_group("tokens")
    for group, option, default, meaning in (
        (speed, "--context", 1024, "tokens of a prompt"),
        (speed, "--decode-steps", 32, "steps to time"),
        (tokens, "--output-len", 32, "tokens of an answer"),
    ):
        text = f"{meaning} (default: {default})"
        group.add_argument(option, type=positive_int, default=default, metavar="N", help=text)
    tokens.add_argument("--expected", type=Path, metavar="FILE", help="another layout's --json")
    parser.add_overrides()
    return parser
