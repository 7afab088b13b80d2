"""Whether all stages of a pipeline are busy: one trace of every rank while requests decode.

Run under torchrun, all ranks on one node, whose clock they share::

    torchrun --nproc_per_node 2 benchmarks/benchmark_pipeline.py --running 64 infer.pp_size=2

Each rank notes when it computes (`stage_trace.py`); the leader gathers the notes, prints each rank's
busy share of the time in which all requests decode, and writes a trace for ui.perfetto.dev.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from chitu_like.bench.engine_run import NO_PREFIX_CACHE, EngineRun, with_defaults
from chitu_like.bench.provenance import provenance
from chitu_like.bench.random_prompts import random_prompts
from chitu_like.bench.result_files import write_json
from chitu_like.bench.stage_trace import (
    RankTrace,
    Span,
    StageRecorder,
    all_busy_share,
    busy_share,
    write_chrome_trace,
)
from chitu_like.cli.command_line import Parser, positive_int
from chitu_like.config.load import load_config
from chitu_like.config.schema import ServeConfig
from chitu_like.core.ending import DONE
from chitu_like.core.errors import ConfigError, PeerError
from chitu_like.layout import placement_of
from chitu_like.llm import LLM
from chitu_like.model_files import read_model_files
from chitu_like.rank import follow
from chitu_like.torchrun import TorchrunRank
from chitu_like.worker.device import device_facts

WARM_UP_TOKENS = 8
GATHER_TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """One rank in the time in which all requests decode.

    Attributes:
        rank, pp_rank, tp_rank: who.
        num_steps: batches it computed.
        mean_step_ms: time at work for one of them.
        busy: share of the time at work.
    """

    rank: int
    pp_rank: int
    tp_rank: int
    num_steps: int
    mean_step_ms: float
    busy: float


@dataclass(frozen=True, kw_only=True)
class PipelineResult:
    """What the trace says.

    Attributes:
        rows: by rank.
        all_busy: share of the time in which every rank was at work.
        decode_tokens_per_s: of the whole instance.
    """

    rows: list[StageRow]
    all_busy: float
    decode_tokens_per_s: float


def run(prog: str, arguments: Sequence[str]) -> int:
    """Do this rank's part; the leader prints the table."""
    options = _parser(prog).parse_intermixed_args(arguments)
    overrides = with_defaults(options.overrides, NO_PREFIX_CACHE)
    config = load_config(overrides)
    here = TorchrunRank.from_environ(os.environ)
    here.check(config, program=prog)
    if config.deploy.replicas > 1:
        raise ConfigError(f"deploy.replicas={config.deploy.replicas}: this traces one instance")
    options.out.mkdir(parents=True, exist_ok=True)
    recorder = StageRecorder()
    recorder.install()
    if here.rank > 0:
        code = follow(config, read_model_files(config).spec, os.environ)
        _write_trace(options.out, _trace(config, here.rank, recorder.spans()))
        return code
    for rank in range(config.num_ranks):
        _trace_file(options.out, rank).unlink(missing_ok=True)
    with LLM(*overrides) as llm:
        engine_run = EngineRun(llm)
        engine_run.check_room(options.running, options.prompt_len + options.output_len)
        rng = random.Random(0)
        lengths = [options.prompt_len] * options.running
        prompts = random_prompts(rng, lengths, llm.info.vocab_size)
        engine_run.seconds(prompts, WARM_UP_TOKENS)
        start_s = time.monotonic()
        engine_run.seconds(random_prompts(rng, lengths, llm.info.vocab_size), options.output_len)
    _write_trace(options.out, _trace(config, here.rank, recorder.spans()))
    traces = [_since(trace, start_s) for trace in _gather_traces(options.out, config.num_ranks)]
    result = evaluate(traces, options.running)
    write_chrome_trace(options.out / "trace.json", traces)
    console = Console(soft_wrap=True)
    console.print(_table(result))
    console.print(f"trace for ui.perfetto.dev: {options.out / 'trace.json'}", highlight=False)
    origin = provenance(prog, arguments, device_facts(config.infer.device))
    write_json(options.out / "result.json", {**asdict(origin), **asdict(result)})
    return DONE


def evaluate(traces: Sequence[RankTrace], num_running: int) -> PipelineResult:
    """Busy shares from the first to the last step of the time in which everybody decodes.

    Args:
        traces: of all ranks.
        num_running: requests.

    Raises: PeerError where there is no such time.
    """
    decodes = _full_decodes(traces[0], num_running, num_stages=_num_stages(traces))
    if len(decodes) < 2:
        raise PeerError("all requests never decoded together: ask for more --output-len")
    start_s, end_s = decodes[0].start_s, decodes[-1].start_s
    rows = []
    for trace in traces:
        within = [span for span in trace.spans if start_s <= span.start_s < end_s]
        num_steps = len({span.step_id for span in within})
        seconds = sum(span.end_s - span.start_s for span in within)
        rows.append(
            StageRow(
                rank=trace.rank,
                pp_rank=trace.pp_rank,
                tp_rank=trace.tp_rank,
                num_steps=num_steps,
                mean_step_ms=seconds / max(1, num_steps) * 1e3,
                busy=busy_share(trace.spans, start_s, end_s),
            )
        )
    tokens = {span.step_id: span.num_tokens for span in decodes[:-1]}
    return PipelineResult(
        rows=rows,
        all_busy=all_busy_share(traces, start_s, end_s),
        decode_tokens_per_s=sum(tokens.values()) / (end_s - start_s),
    )


def _full_decodes(trace: RankTrace, num_running: int, *, num_stages: int) -> list[Span]:
    """The spans of steps that are a full micro-batch of decodes and nothing else."""
    least = num_running // num_stages
    return [s for s in trace.spans if s.num_reqs == s.num_tokens >= least]


def _num_stages(traces: Sequence[RankTrace]) -> int:
    return 1 + max(trace.pp_rank for trace in traces)


def _since(trace: RankTrace, start_s: float) -> RankTrace:
    """The trace without its warm-up."""
    spans = [span for span in trace.spans if span.start_s >= start_s]
    return msgspec.structs.replace(trace, spans=spans)


def _trace(config: ServeConfig, rank: int, spans: list[Span]) -> RankTrace:
    seat = placement_of(config, read_model_files(config).spec).seat(rank)
    return RankTrace(rank=rank, pp_rank=seat.pp_rank, tp_rank=seat.tp_rank, spans=spans)


def _trace_file(folder: Path, rank: int) -> Path:
    return folder / f"rank{rank}.json"


def _write_trace(folder: Path, trace: RankTrace) -> None:
    """Write it whole or not at all: the leader may be looking."""
    unfinished = folder / f"rank{trace.rank}.unfinished"
    unfinished.write_bytes(msgspec.json.encode(trace))
    unfinished.replace(_trace_file(folder, trace.rank))


def _gather_traces(folder: Path, num_ranks: int) -> list[RankTrace]:
    """Everybody's trace by rank. Raises: PeerError where one does not come."""
    deadline = time.monotonic() + GATHER_TIMEOUT_S
    files = [_trace_file(folder, rank) for rank in range(num_ranks)]
    while missing := [file.name for file in files if not file.exists()]:
        if time.monotonic() > deadline:
            raise PeerError(f"{', '.join(missing)} did not come into {folder}")
        time.sleep(0.1)
    return [msgspec.json.decode(file.read_bytes(), type=RankTrace) for file in files]


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog,
        "Trace what every rank of one instance does while requests decode, and say how busy each "
        "is. Run it under torchrun, all ranks on one node.",
        [f"torchrun --nproc_per_node 2 {prog} --running 64 infer.pp_size=2"],
    )
    for option, default, meaning in (
        ("--running", 64, "requests at once"),
        ("--prompt-len", 32, "tokens of a prompt"),
        ("--output-len", 64, "tokens of an answer"),
    ):
        text = f"{meaning} (default: {default})"
        parser.add_argument(option, type=positive_int, default=default, metavar="N", help=text)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("outputs/pipeline"),
        metavar="DIR",
        help="for the traces (default: %(default)s)",
    )
    parser.add_overrides()
    return parser


def _table(result: PipelineResult) -> Table:
    table = Table(
        title=f"all busy {result.all_busy:.1%} of the time, "
        f"{result.decode_tokens_per_s:.0f} decode tokens/s",
        title_justify="left",
    )
    for name in ("rank", "stage", "tp", "steps", "ms a step", "busy"):
        table.add_column(name, justify="right")
    for row in result.rows:
        table.add_row(
            str(row.rank),
            str(row.pp_rank),
            str(row.tp_rank),
            str(row.num_steps),
            f"{row.mean_step_ms:.2f}",
            f"{row.busy:.1%}",
        )
    return table
