"""Search the tiles of the paged attention kernels (ops/attention_tiles.py) on a CUDA device.

Decode first: the tiles, then with the best of them how many splits are wanted (attention/triton.py), and
programmatic dependent launch; over requests of one length, and of many, as they are in service. Then
prefill. A candidate's score is the geometric mean, over the points, of its time against the best
candidate's at that point: no point decides alone. Other backends that are installed stand below, at the
same points. Kernels are compiled ahead in several processes, which Triton's cache on the disk brings
together.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from chitu_like.attention.base import AttentionBackend, attention_backends
from chitu_like.bench.attention_candidates import (
    Candidate,
    decode_candidates,
    prefill_candidates,
    split_candidates,
)
from chitu_like.bench.attention_case import (
    attention_kinds,
    attention_spec,
    attention_work,
)
from chitu_like.bench.device_timing import num_sets, seconds_per_call
from chitu_like.bench.op_case import Setting
from chitu_like.bench.ops import Sweep, settings
from chitu_like.bench.provenance import provenance
from chitu_like.bench.result_files import write_json
from chitu_like.cli.command_line import Parser, positive_int
from chitu_like.core.ending import DONE
from chitu_like.core.errors import UnsupportedError
from chitu_like.ops.attention_tiles import tiling_for
from chitu_like.worker.device import device_facts

DECODES = ((1, 1024), (8, 1024), (32, 1024), (256, 1024), (1, 8192), (32, 8192))
UNEVEN_DECODES = (64, 128, 256)
UNEVEN_CONTEXTS = (100, 1500)  # from, to
PROMPTS = ((1, 1024), (8, 1024), (1, 8192))
RIVALS = ("flashinfer", "xqa", "flash_attn")
NUM_BEST = 2  # decode tiles that get a second round


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A candidate's microseconds at each point, inf where it does not run, and its score."""

    candidate: Candidate
    microseconds: tuple[float, ...]
    score: float


def run(prog: str, arguments: Sequence[str]) -> int:
    """Search, print the best, write everything as JSON if asked to.

    Raises: UnsupportedError without a CUDA device.
    """
    options = _parser(prog).parse_args(arguments)
    facts = device_facts("auto")
    if facts.device != "cuda":
        raise UnsupportedError(f"{prog} wants a CUDA device, and torch sees none here")
    console = Console(soft_wrap=True, highlight=False, width=140)
    decodes, prompts = _points(options.model)
    base = tiling_for(decodes[0].spec.head_dim, decodes[0].dtype)
    tiles, prefills = decode_candidates(base), prefill_candidates(base)
    early = [replace(candidate, pdl=True) for candidate in tiles]
    compile_ahead([(tiles + early, decodes), (prefills, prompts)], options.jobs)
    first = search(tiles, decodes, _microseconds)
    best = [scored.candidate for scored in first[:NUM_BEST]]
    found = {
        "decode": (first, decodes),
        "decode, splits": (search(split_candidates(best), decodes, _microseconds), decodes),
        "prefill": (search(prefills, prompts, _microseconds), prompts),
    }
    rows = {}
    for name, (scored, points) in found.items():
        rivals = {} if name == "decode" else _rivals(points, console)
        console.print(_table(name, scored[: options.top], rivals, points))
        rows[name] = {"candidates": [asdict(one) for one in scored], "others": rivals}
    if options.json is not None:
        origin = asdict(provenance(prog, arguments, facts))
        write_json(options.json, {"benchmark": "attention_tuning", **origin, **rows})
    return DONE


def compile_ahead(
    searches: Sequence[tuple[Sequence[Candidate], Sequence[Setting]]], num_jobs: int
) -> None:
    """Compile what searches will launch.

    Args:
        searches: candidates, and the points where they will be timed.
        num_jobs: processes.
    """
    with ProcessPoolExecutor(num_jobs, mp_context=get_context("spawn")) as pool:
        futures = [
            pool.submit(_compile, candidate, at)
            for candidates, points in searches
            for at in _few_and_many(points)
            for candidate in candidates
        ]
        for future in futures:
            future.result()


def _few_and_many(points: Sequence[Setting]) -> list[Setting]:
    """Kernels are the same for some numbers of requests, and for all lengths of several tiles."""
    by_size = sorted(points, key=lambda at: at.num_reqs)
    return [
        replace(at, context=256, query_len=1 if at.is_decode else 256, shortest=None)
        for at in (by_size[0], by_size[-1])
    ]


def _compile(candidate: Candidate, at: Setting) -> None:
    from triton.runtime.errors import OutOfResources

    with contextlib.suppress(OutOfResources):  # the search finds that out too
        attention_work(at, candidate.backend(at)).fresh()()


def search(
    candidates: Sequence[Candidate],
    points: Sequence[Setting],
    time: Callable[[Setting, AttentionBackend], float],
) -> list[Scored]:
    """Time candidates, the best first.

    Args:
        candidates: to time.
        points: where.
        time: microseconds of a backend at a point, inf where the device has no room for its tiles.
    """
    times = []
    known: dict[Hashable, float] = {}
    for candidate in candidates:
        for place, at in enumerate(points):
            key = place, candidate.work(at)
            if key not in known:
                known[key] = time(at, candidate.backend(at))
        times.append(tuple(known[place, candidate.work(at)] for place, at in enumerate(points)))
    return ranked(candidates, times)


def ranked(candidates: Sequence[Candidate], times: Sequence[tuple[float, ...]]) -> list[Scored]:
    """Score candidates by their microseconds at each point, the best first; see the module."""
    best = [min(column) for column in zip(*times, strict=True)]

    def score(row: tuple[float, ...]) -> float:
        if math.inf in row:
            return math.inf
        return math.exp(sum(math.log(a / b) for a, b in zip(row, best, strict=True)) / len(row))

    found = [
        Scored(candidate=candidate, microseconds=row, score=score(row))
        for candidate, row in zip(candidates, times, strict=True)
    ]
    return sorted(found, key=lambda scored: scored.score)


def _microseconds(at: Setting, backend: AttentionBackend) -> float:
    from triton.runtime.errors import OutOfResources

    work = attention_work(at, backend)
    calls = [work.fresh() for _ in range(num_sets(work.streamed_bytes, at.device))]
    try:
        return seconds_per_call(calls, at.device, in_graph=work.in_graph) * 1e6
    except OutOfResources:
        return math.inf


def _rivals(points: Sequence[Setting], console: Console) -> dict[str, tuple[float, ...]]:
    """Microseconds of other backends at the points, inf where they fail; that is printed."""

    def time(name: str, at: Setting) -> float:
        try:
            return _microseconds(at, attention_backends.get(name)(attention_spec(at)))
        except Exception as error:  # another's kernel must not cost ours their table
            console.print(f"FAILED: {name}, {_label(at)}: {error!r:.300}", markup=False)
            return math.inf

    names = [name for name in RIVALS if name in attention_kinds(points[0])]
    return {name: tuple(time(name, at) for at in points) for name in names}


def _points(model: str) -> tuple[list[Setting], list[Setting]]:
    """Decodes, and prompts."""
    sweep = Sweep(models=(model,), batches=(1,), contexts=(1,), prompts=(1,))
    decode, prompt = settings(model, sweep, torch.device("cuda"), torch.bfloat16, 16)
    shortest, longest = UNEVEN_CONTEXTS
    even = [replace(decode, num_reqs=n, context=context) for n, context in DECODES]
    uneven = [
        replace(decode, num_reqs=n, context=longest, shortest=shortest) for n in UNEVEN_DECODES
    ]
    prompts = [
        replace(prompt, num_reqs=n, query_len=length, context=length) for n, length in PROMPTS
    ]
    return even + uneven, prompts


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog,
        "Search tiles of the paged attention kernels on this CUDA device, in bfloat16, for a "
        "model's heads. What is best belongs into ops/attention_tiles.py and attention/triton.py.",
        [f"{prog} --model llama-3-8b --json tiles.json"],
    )
    parser.add_argument("--model", default="llama-3-8b", metavar="NAME", help="of config/models")
    parser.add_argument("--jobs", type=positive_int, default=8, metavar="N", help="that compile")
    parser.add_argument("--top", type=positive_int, default=6, metavar="N", help="rows of a table")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all of it there")
    return parser


def _label(at: Setting) -> str:
    context = f"{at.context}" if at.shortest is None else f"{at.shortest}..{at.context}"
    return f"{at.num_reqs} x {context}"


def _table(
    name: str,
    found: Sequence[Scored],
    rivals: dict[str, tuple[float, ...]],
    points: Sequence[Setting],
) -> Table:
    table = Table(title=f"{name}, microseconds", title_justify="left")
    table.add_column("tile", no_wrap=True)
    for at in points:
        table.add_column(_label(at), justify="right")
    table.add_column("score", justify="right")
    for row in _rows(found, is_decode=points[0].is_decode):
        table.add_row(*row)
    for rival, microseconds in rivals.items():
        table.add_row(rival, *(f"{time:.1f}" for time in microseconds), "")
    return table


def _rows(found: Sequence[Scored], *, is_decode: bool) -> Iterator[list[str]]:
    for one in found:
        candidate = one.candidate
        tile = candidate.tiling.decode if is_decode else candidate.tiling.prefill
        words = f"{tile.rows}x{tile.keys} {tile.num_warps}w {tile.num_stages}s"
        if is_decode:
            words += f" waves {candidate.waves}{' pdl' if candidate.pdl else ''}"
        yield [words, *(f"{time:.1f}" for time in one.microseconds), f"{one.score:.3f}"]
