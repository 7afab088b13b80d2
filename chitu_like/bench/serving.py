"""Load on any OpenAI-compatible server: TTFT, TPOT, ITL, E2E, throughput, goodput.

Prompts are random token ids of exact lengths and answers have exact lengths (ignore_eos), so that two
servers, or two days, get the same work. The clock is read once for each piece that arrives.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import random
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from typing import TypeVar

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from chitu_like.bench.client import Address, StreamClient, StreamRecord
from chitu_like.bench.latency import SentRequest, ServingSummary, summarize
from chitu_like.bench.load import run_load
from chitu_like.bench.provenance import Provenance, provenance
from chitu_like.bench.result_files import write_csv, write_json
from chitu_like.bench.serving_options import serving_parser
from chitu_like.bench.serving_report import (
    check_plotting,
    figures_table,
    latency_table,
    remarks,
    request_rows,
    write_plot,
)
from chitu_like.bench.serving_sweep import Curve, RatePoint, plot_curves, sweep_table
from chitu_like.bench.workload import MAX_REQUESTS, plan_trace, prompt_of
from chitu_like.config.secrets import API_KEYS_VARIABLE
from chitu_like.core.ending import DONE, FAILED
from chitu_like.core.errors import ConfigError, PeerError
from chitu_like.simulator.arrivals import arrival_times
from chitu_like.simulator.results import Slo
from chitu_like.simulator.traces import read_lengths, read_trace
from chitu_like.simulator.workload import PlannedRequest, plan_requests

Row = TypeVar("Row")
TABLE_WIDTH = 110


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model] = []


def run(prog: str, arguments: Sequence[str]) -> int:
    """Generate the load, print the tables, write what was asked for."""
    options = serving_parser(prog).parse_args(arguments)
    if options.plot is not None:
        check_plotting()
    origin = provenance(prog, _without_key(arguments), None)
    if options.rates is not None:
        return _sweep(options, origin)
    elapsed_s, sent = asyncio.run(generate_load(options, plan_rounds(options)))
    summary = summarize(sent, elapsed_s, _slo_of(options))
    _show(summary)
    rows = request_rows(sent)
    if options.json is not None:
        results = {"benchmark": "serving", "base_url": options.base_url, **asdict(origin)}
        write_json(options.json, {**results, **asdict(summary), "requests": rows})
    if options.csv is not None:
        write_csv(options.csv, rows)
    if options.plot is not None:
        write_plot(options.plot, sent)
    return FAILED if summary.num_failed == summary.num_requests else DONE


def _sweep(options: argparse.Namespace, origin: Provenance) -> int:
    """Load at one rate after the other, until the server is saturated.

    Raises: ConfigError for options that leave no rate to set.
    """
    if options.iterations is not None or options.rate is not None or options.csv is not None:
        raise ConfigError("--rates sets the rate: leave out --rate, --iterations and --csv")
    points: list[RatePoint] = []
    for index, rate in enumerate(options.rates):
        changed = {
            "arrival": options.arrival or "poisson",
            "rate": rate,
            "warmup": 0 if points else options.warmup,
            # Prompts of their own: what a prefix cache kept of the rate before would help.
            "seed": options.seed + index,
        }
        at_rate = argparse.Namespace(**{**vars(options), **changed})
        elapsed_s, sent = asyncio.run(generate_load(at_rate, plan_rounds(at_rate)))
        points.append(RatePoint(rate=rate, summary=summarize(sent, elapsed_s, _slo_of(options))))
        print(f"{rate:g} requests/s offered, answered after {elapsed_s:.1f} s", flush=True)
        if points[-1].is_saturated:
            break
    Console(soft_wrap=True, highlight=False, width=TABLE_WIDTH).print(sweep_table(points))
    found = [point.as_json() for point in points]
    if options.json is not None:
        head = {"benchmark": "serving", "base_url": options.base_url, **asdict(origin)}
        write_json(options.json, {**head, "sweep": found})
    if options.plot is not None:
        plot_curves(options.plot, [Curve(label=options.base_url, points=found)])
    return FAILED if all(p.summary.num_failed == p.summary.num_requests for p in points) else DONE


def _slo_of(options: argparse.Namespace) -> Slo | None:
    if options.slo_ttft is None and options.slo_tpot is None:
        return None
    return Slo(
        ttft_s=None if options.slo_ttft is None else options.slo_ttft / 1e3,
        tpot_s=None if options.slo_tpot is None else options.slo_tpot / 1e3,
    )


def plan_rounds(options: argparse.Namespace) -> list[list[PlannedRequest]]:
    """What to send: one open-ended round, or with --iterations so many, each after the other.

    Raises: ConfigError for options that contradict each other, or files that cannot be read.
    """
    if options.iterations is not None:
        if options.arrival is not None or options.num_requests or options.duration:
            raise ConfigError("--iterations sends rounds: leave out --arrival, --num-requests, ...")
        count, arrivals = options.iterations * options.batch_size, itertools.repeat(0.0)
        plan = list(plan_requests(arrivals, _lengths(options), count=count, duration_s=None))
        size = options.batch_size
        return [plan[first : first + size] for first in range(0, len(plan), size)]
    count, duration_s = options.num_requests, options.duration
    if (options.arrival == "trace") != (options.trace is not None):
        raise ConfigError("--arrival trace and --trace FILE go together")
    if options.trace is not None:
        rows = _short_enough(
            read_trace(options.trace),
            lambda row: row.input_len + row.output_len,
            options.max_request_len,
        )
        return [plan_trace(rows, rate=options.rate, count=count, duration_s=duration_s)]
    if count is None and duration_s is None:
        count = 100
    kind = options.arrival or "burst"
    if count is None and options.rate is None:
        raise ConfigError("--duration needs --rate: all at once has no end")
    times = arrival_times(
        kind,
        options.rate,
        random.Random(f"{options.seed} arrivals"),
        burst_size=options.burst_size,
        cv=options.cv,
    )
    count = MAX_REQUESTS if count is None else count
    return [list(plan_requests(times, _lengths(options), count=count, duration_s=duration_s))]


def _lengths(options: argparse.Namespace) -> Iterable[tuple[int, int]]:
    """(input, output) tokens of one request after the other, without end."""
    if options.lengths is not None:
        found = _short_enough(read_lengths(options.lengths), sum, options.max_request_len)
        random.Random(f"{options.seed} lengths").shuffle(found)
        return itertools.cycle(found)
    return itertools.repeat((options.input_len, options.output_len))


def _short_enough(
    rows: list[Row], length_of: Callable[[Row], int], longest: int | None
) -> list[Row]:
    """Those of at most `longest` tokens in all. Raises: ConfigError if none is."""
    found = [row for row in rows if longest is None or length_of(row) <= longest]
    if not found:
        raise ConfigError(f"--max-request-len {longest}: every request is longer")
    return found


async def generate_load(
    options: argparse.Namespace, rounds: Sequence[Sequence[PlannedRequest]]
) -> tuple[float, list[SentRequest]]:
    """Warm up, send every round.

    Returns: the seconds that the rounds took together, and what became of each request.
    Raises: PeerError if the server does not answer at all.
    """
    clock = time.perf_counter
    key = options.api_key or os.environ.get(API_KEYS_VARIABLE, "").partition(",")[0]
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    client = StreamClient(Address(options.base_url), headers, clock, options.timeout)
    sender = Sender(client, options, options.model or await _first_model(client))
    first = next(itertools.chain.from_iterable(rounds), None)
    if first is None:
        raise ConfigError("nothing to send: --duration ends before the first request")
    for number in range(options.warmup):
        # An index of its own: what the prefix cache learns here must not shorten the run.
        record = await sender.send(replace(first, index=-1 - number, hash_ids=()))
        if record.error is not None:
            raise PeerError(f"the warm-up failed: {record.error}")
    elapsed_s, sent = 0.0, []
    with _progress_bar() as bar:
        task = bar.add_task("requests", total=sum(map(len, rounds)))
        for requests in rounds:
            start_s, records = await run_load(
                requests,
                sender.send,
                clock=clock,
                max_concurrency=options.max_concurrency,
                when_done=lambda record: bar.advance(task),
            )
            elapsed_s += max(record.end_s for record in records) - start_s
            sent += [
                SentRequest(request=request, due_s=start_s + request.arrival_s, record=record)
                for request, record in zip(requests, records, strict=True)
            ]
    return elapsed_s, sent


class Sender:
    """Turns planned requests into bodies and sends them.

    Args:
        client: sends.
        options: of the command line.
        model: as the server calls it.
    """

    def __init__(self, client: StreamClient, options: argparse.Namespace, model: str) -> None:
        self._client = client
        self._options = options
        self._model = model

    async def send(self, request: PlannedRequest) -> StreamRecord:
        """Send one request and wait for its answer."""
        body = {
            "model": self._model,
            "max_tokens": request.output_len,
            "temperature": self._options.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if not self._options.stop_at_eos:
            body["ignore_eos"] = True
        if self._options.endpoint == "chat":
            words = " ".join(["word"] * request.input_len)
            body["messages"] = [{"role": "user", "content": words}]
            path = "/v1/chat/completions"
        else:
            body["prompt"] = prompt_of(request, self._options.seed, self._options.vocab_size)
            path = "/v1/completions"
        return await self._client.stream(path, body, request.output_len)


async def _first_model(client: StreamClient) -> str:
    try:
        models = msgspec.json.decode(await client.get("/v1/models"), type=_Models).data
    except msgspec.MsgspecError:
        models = []
    if not models:
        raise PeerError("the server lists no model at /v1/models: give --model")
    return models[0].id


def _show(summary: ServingSummary) -> None:
    console = Console(soft_wrap=True, highlight=False)
    console.print(figures_table(summary))
    console.print(latency_table(summary))
    for remark in remarks(summary):
        console.print(f"[yellow]note:[/yellow] {remark}")


def _without_key(arguments: Sequence[str]) -> list[str]:
    """The arguments without the key, which must not stand in a file."""
    shown, is_key = [], False
    for argument in arguments:
        if is_key:
            shown.append("***")
        else:
            shown.append("--api-key=***" if argument.startswith("--api-key=") else argument)
        is_key = argument == "--api-key" and not is_key
    return shown


def _progress_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )
