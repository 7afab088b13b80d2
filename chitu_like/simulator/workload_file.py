"""What `workload=` means: a trace, or arrivals and lengths described in yaml:

    arrivals: {kind: poisson, rate: 4}     # gamma with cv, uniform, burst with size; requests/s
    input_len: {median: 500, sigma: 1.1, low: 4, high: 8192}       # lognormal
    output_len: {quantiles: [[0, 7], [0.5, 129], [0.99, 601], [1, 1000]]}
    about: where the figures come from

A length may also be {low: 1, high: 9} (uniform) or {fixed: 128}.
"""  # noqa: D415 the yaml is the point

from __future__ import annotations

import difflib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Protocol

from chitu_like.cluster.record import Record
from chitu_like.config.files import values_dir
from chitu_like.core.errors import ConfigError
from chitu_like.simulator.arrivals import KINDS, arrival_times
from chitu_like.simulator.lengths import Lengths, Lognormal, Quantiles, Uniform
from chitu_like.simulator.traces import MAX_LENGTH, read_trace
from chitu_like.simulator.workload import PlannedRequest, at_rate, repeated

TRACE_SUFFIXES = (".csv", ".jsonl", ".json")


class Workload(Protocol):
    """Requests without end."""

    @property
    def mean_input_len(self) -> float:
        """Prompt tokens of an average request."""
        ...

    @property
    def mean_output_len(self) -> float:
        """Output tokens of an average request."""
        ...

    def requests(self, *, rate: float | None, seed: int) -> Iterator[PlannedRequest]:
        """Requests in order of arrival, the same for the same seed.

        Args:
            rate: mean requests/s; None: as the workload says.
            seed: of what is drawn.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class SyntheticWorkload:
    """Arrivals and lengths that know nothing of each other.

    Attributes:
        kind, rate, cv, burst_size: as `arrival_times` takes them.
        input_len, output_len: distributions.
    """

    kind: str
    rate: float
    cv: float
    burst_size: int
    input_len: Lengths
    output_len: Lengths

    @property
    def mean_input_len(self) -> float:
        """Prompt tokens of an average request."""
        return self.input_len.mean

    @property
    def mean_output_len(self) -> float:
        """Output tokens of an average request."""
        return self.output_len.mean

    def requests(self, *, rate: float | None, seed: int) -> Iterator[PlannedRequest]:
        """Times and lengths have a generator each: another rate leaves the lengths as they are."""
        times, lengths = random.Random(f"{seed} arrivals"), random.Random(f"{seed} lengths")
        arrivals = arrival_times(
            self.kind,
            self.rate if rate is None else rate,
            times,
            burst_size=self.burst_size,
            cv=self.cv,
        )
        for index, arrival_s in enumerate(arrivals):
            yield PlannedRequest(
                index=index,
                arrival_s=arrival_s,
                input_len=self.input_len.draw(lengths),
                output_len=self.output_len.draw(lengths),
            )


@dataclass(frozen=True)
class TraceWorkload:
    """Recorded requests, from the beginning again when they end.

    Args:
        rows: at least one, in order of arrival.
    """

    rows: Sequence[PlannedRequest]

    @property
    def mean_input_len(self) -> float:
        """Prompt tokens of an average request."""
        return sum(row.input_len for row in self.rows) / len(self.rows)

    @property
    def mean_output_len(self) -> float:
        """Output tokens of an average request."""
        return sum(row.output_len for row in self.rows) / len(self.rows)

    def requests(self, *, rate: float | None, seed: int) -> Iterator[PlannedRequest]:
        """The trace as it is, whatever the seed; with a rate, stretched evenly to it."""
        rows = self.rows if rate is None else list(at_rate(self.rows, rate))
        span_s = rows[-1].arrival_s - rows[0].arrival_s
        gap_s = span_s / (len(rows) - 1) if span_s > 0 else 1.0 if rate is None else 1 / rate
        return repeated(rows, gap_s=gap_s)


def load_workload(name_or_path: str) -> Workload:
    """Read what `workload=` names.

    Args:
        name_or_path: a name in config/workloads/, a yaml like those there, or a trace (csv, jsonl).

    Raises: ConfigError naming file, place and what is wrong there.
    """
    path = find_workload(name_or_path)
    if path.suffix in TRACE_SUFFIXES:
        return TraceWorkload(read_trace(path))
    return read_workload(path)


def find_workload(name_or_path: str) -> Path:
    """The file that `workload=` means.

    Raises: ConfigError if there is none, with the names there are.
    """
    path = Path(name_or_path).expanduser()
    if path.is_file():
        if path.suffix not in (*TRACE_SUFFIXES, ".yaml"):
            raise ConfigError(
                f"workload={name_or_path}: must end in .yaml, or for a trace in "
                f"{', '.join(TRACE_SUFFIXES)}"
            )
        return path
    folder = values_dir() / "workloads"
    names = sorted(file.stem for file in folder.glob("*.yaml"))
    if name_or_path in names:
        return folder / f"{name_or_path}.yaml"
    close = difflib.get_close_matches(name_or_path, names, n=1)
    hint = f"did you mean {close[0]}?" if close else f"give a file, or one of {', '.join(names)}"
    raise ConfigError(f"workload={name_or_path}: no such file or name: {hint}")


def read_workload(path: Path) -> SyntheticWorkload:
    """Read a workload's yaml.

    Raises: ConfigError naming file, place and key.
    """
    record = Record.read(path)
    record.only("arrivals", "input_len", "output_len", "about")
    arrivals = record.record("arrivals")
    arrivals.only("kind", "rate", "cv", "size")
    kind = arrivals.text("kind")
    if kind not in KINDS:
        raise arrivals.broken("kind", f"one of {', '.join(KINDS)}")
    for key, meant in (("cv", "gamma"), ("size", "burst")):
        if arrivals.has(key) and kind != meant:
            raise arrivals.broken(key, f"left out: it has no effect on {kind}, only on {meant}")
    return SyntheticWorkload(
        kind=kind,
        rate=_number(arrivals, "rate", low=1e-6, high=1e6),
        cv=_number(arrivals, "cv", low=0.01, high=100.0) if arrivals.has("cv") else 1.0,
        burst_size=arrivals.whole("size", low=1, high=1_000_000, default=1),
        input_len=_lengths(record.record("input_len")),
        output_len=_lengths(record.record("output_len")),
    )


def _lengths(record: Record) -> Lengths:
    if record.has("quantiles"):
        record.only("quantiles")
        return Quantiles(_points(record))
    if record.has("fixed"):
        record.only("fixed")
        fixed = record.whole("fixed", low=1, high=MAX_LENGTH)
        return Uniform(low=fixed, high=fixed)
    record.only("median", "sigma", "low", "high")
    low = record.whole("low", low=1, high=MAX_LENGTH)
    high = record.whole("high", low=low, high=MAX_LENGTH)
    if not record.has("median"):
        record.only("low", "high")
        return Uniform(low=low, high=high)
    return Lognormal(
        median=_number(record, "median", low=1, high=MAX_LENGTH),
        sigma=_number(record, "sigma", low=0, high=10),
        low=low,
        high=high,
    )


def _points(record: Record) -> list[tuple[float, float]]:
    right = "a list of [share, tokens], shares rising from 0 to 1, tokens never falling"
    points: list[tuple[float, float]] = []
    values = record.get("quantiles")
    for point in values if isinstance(values, list) else ():
        if not (isinstance(point, list) and len(point) == 2 and all(map(_is_number, point))):
            raise record.broken("quantiles", right)
        points.append((float(point[0]), float(point[1])))
    if len(points) < 2 or (points[0][0], points[-1][0]) != (0.0, 1.0):
        raise record.broken("quantiles", right)
    if any(p >= q or a > b for (p, a), (q, b) in pairwise(points)):
        raise record.broken("quantiles", right)
    if not 1 <= points[0][1] <= points[-1][1] <= MAX_LENGTH:
        raise record.broken("quantiles", f"{right}, from 1 to {MAX_LENGTH}")
    return points


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(record: Record, key: str, *, low: float, high: float) -> float:
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise record.broken(key, f"a number from {low} to {high}")
    return float(value)
