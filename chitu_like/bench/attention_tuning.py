"""Search the tiles of the paged attention kernels (ops/attention_tiles.py) on a CUDA device.

Decode first: every tile with as many splits as fill the device four times over, then the best tiles
with more and fewer splits, with programmatic dependent launch and with a fused merge. Then prefill. A
candidate's score is the geometric mean, over the points, of its time against the best at that point: no
point decides alone. Kernels are compiled ahead in several processes, which Triton's cache on the disk
brings together.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from chitu_like.attention.triton import WAVES, TritonBackend
from chitu_like.bench.attention_case import attention_spec, attention_work
from chitu_like.bench.device_timing import num_sets, seconds_per_call
from chitu_like.bench.op_case import Setting
from chitu_like.bench.ops import Sweep, settings
from chitu_like.bench.provenance import provenance
from chitu_like.bench.result_files import write_json
from chitu_like.cli.command_line import Parser, positive_int
from chitu_like.core.ending import DONE
from chitu_like.core.errors import UnsupportedError
from chitu_like.ops.attention_tiles import MIN_SIDE, Tile, Tiling, tiling_for
from chitu_like.worker.device import device_facts

DECODE_POINTS = ((1, 1024), (1, 8192), (8, 1024), (32, 1024), (32, 8192), (256, 1024))
PROMPTS = (1024, 8192)
NUM_BEST = 3  # decode tiles that get a second round


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A way to cut the kernels.

    Attributes:
        tiling: tiles of both; one of them is searched at a time.
        waves: decode programs for each multiprocessor.
        pdl: programmatic dependent launch.
        fused_merge: the last split of a decode merges them all.
    """

    tiling: Tiling
    waves: int = WAVES
    pdl: bool = False
    fused_merge: bool = False

    def backend(self, at: Setting) -> TritonBackend:
        """One that cuts so."""
        device = torch.cuda.get_device_properties(at.device)
        return TritonBackend(
            attention_spec(at),
            tiling=self.tiling,
            num_programs=self.waves * device.multi_processor_count,
            fused_merge=self.fused_merge,
            pdl=self.pdl,
        )


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
    console = Console(soft_wrap=True, highlight=False, width=120)
    decodes = list(_points(options.model, decode=True))
    prompts = list(_points(options.model, decode=False))
    base = tiling_for(decodes[0].spec.head_dim, decodes[0].dtype)
    first = search(decode_candidates(base), decodes, options.jobs)
    second = [
        Candidate(tiling=scored.candidate.tiling, waves=waves, pdl=pdl, fused_merge=fused_merge)
        for scored in first[:NUM_BEST]
        for waves, pdl, fused_merge in itertools.product(
            (WAVES // 2, WAVES, 2 * WAVES), (False, True), (False, True)
        )
    ]
    found = {
        "decode": first,
        "decode, splits and early starts": search(second, decodes, options.jobs),
        "prefill": search(prefill_candidates(base), prompts, options.jobs),
    }
    for name, scored in found.items():
        console.print(
            _table(name, scored[: options.top], prompts if name == "prefill" else decodes)
        )
    if options.json is not None:
        origin = asdict(provenance(prog, arguments, facts))
        rows = {name: [asdict(one) for one in scored] for name, scored in found.items()}
        write_json(options.json, {"benchmark": "attention_tuning", **origin, **rows})
    return DONE


def decode_candidates(base: Tiling) -> list[Candidate]:
    """Decode tiles worth measuring; the table's own first."""
    tiles = [base.decode]
    for keys, num_warps, num_stages in itertools.product((32, 64, 128), (2, 4, 8), (2, 3, 4)):
        tiles.append(Tile(rows=MIN_SIDE, keys=keys, num_warps=num_warps, num_stages=num_stages))
    return [
        Candidate(tiling=Tiling(decode=tile, prefill=base.prefill)) for tile in dict.fromkeys(tiles)
    ]


def prefill_candidates(base: Tiling) -> list[Candidate]:
    """Prefill tiles worth measuring; the table's own first."""
    tiles = [base.prefill]
    shapes = itertools.product((64, 128), (32, 64, 128), (4, 8), (2, 3, 4))
    for rows, keys, num_warps, num_stages in shapes:
        tiles.append(Tile(rows=rows, keys=keys, num_warps=num_warps, num_stages=num_stages))
    return [
        Candidate(tiling=Tiling(decode=base.decode, prefill=tile)) for tile in dict.fromkeys(tiles)
    ]


def search(
    candidates: Sequence[Candidate], points: Sequence[Setting], num_jobs: int
) -> list[Scored]:
    """Time candidates, the best first.

    Args:
        candidates: to time.
        points: where.
        num_jobs: processes that compile.
    """
    with ProcessPoolExecutor(num_jobs, mp_context=get_context("spawn")) as pool:
        runs = list(pool.map(partial(compiles, points=points), candidates))
    times = [
        tuple(_microseconds(candidate, at) if is_good else math.inf for at in points)
        for candidate, is_good in zip(candidates, runs, strict=True)
    ]
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


def compiles(candidate: Candidate, points: Sequence[Setting]) -> bool:
    """Run once at each point, which compiles; False where the device has no room for the tile."""
    from triton.runtime.errors import OutOfResources

    try:
        for at in points:
            attention_work(at, candidate.backend(at)).fresh()()
        torch.cuda.synchronize()
    except OutOfResources:
        return False
    finally:
        torch.cuda.empty_cache()
    return True


def _microseconds(candidate: Candidate, at: Setting) -> float:
    work = attention_work(at, candidate.backend(at))
    calls = [work.fresh() for _ in range(num_sets(work.streamed_bytes, at.device))]
    return seconds_per_call(calls, at.device, in_graph=work.in_graph) * 1e6


def _points(model: str, *, decode: bool) -> Iterator[Setting]:
    device, dtype = torch.device("cuda"), torch.bfloat16
    batches = sorted({batch for batch, _ in DECODE_POINTS})
    contexts = sorted({context for _, context in DECODE_POINTS})
    sweep = Sweep(models=(model,), batches=batches, contexts=contexts, prompts=PROMPTS)
    for at in settings(model, sweep, device, dtype, 16):
        is_wanted = not at.is_decode or (at.num_reqs, at.context) in DECODE_POINTS
        if at.is_decode == decode and is_wanted:
            yield at


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog,
        "Search tiles of the paged attention kernels on this CUDA device, in bfloat16, for a "
        "model's heads. What is best belongs into ops/attention_tiles.py.",
        [f"{prog} --model llama-3-8b --json tiles.json"],
    )
    parser.add_argument("--model", default="llama-3-8b", metavar="NAME", help="of config/models")
    parser.add_argument("--jobs", type=positive_int, default=8, metavar="N", help="that compile")
    parser.add_argument("--top", type=positive_int, default=6, metavar="N", help="rows of a table")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all of it there")
    return parser


def _table(name: str, found: Sequence[Scored], points: Sequence[Setting]) -> Table:
    table = Table(title=f"{name}, microseconds", title_justify="left")
    table.add_column("tile", no_wrap=True)
    for at in points:
        label = f"{at.num_reqs} x {at.context}" if at.is_decode else f"prompt {at.context}"
        table.add_column(label, justify="right")
    table.add_column("score", justify="right")
    for one in found:
        candidate = one.candidate
        tile = candidate.tiling.prefill if name == "prefill" else candidate.tiling.decode
        words = f"{tile.rows}x{tile.keys} {tile.num_warps}w {tile.num_stages}s"
        if name != "prefill":
            words += f" waves {candidate.waves}{' pdl' if candidate.pdl else ''}"
            words += " fused" if candidate.fused_merge else ""
        times = [f"{microseconds:.1f}" for microseconds in one.microseconds]
        table.add_row(words, *times, f"{one.score:.3f}")
    return table
