"""Recorded traffic: Azure's CSV, Mooncake's JSON lines, and any CSV of time, input and output."""

from __future__ import annotations

import csv
import datetime
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from chitu_like.core.errors import ConfigError
from chitu_like.simulator.workload import PlannedRequest

TIME_COLUMNS = ("timestamp", "arrival_s", "time")
INPUT_COLUMNS = ("contexttokens", "input_tokens", "input_length", "input")
OUTPUT_COLUMNS = ("generatedtokens", "output_tokens", "output_length", "output")
COUNT_COLUMNS = ("count", "requests", "arrivals")
MAX_COUNT = 10_000_000
MAX_LENGTH = 10_000_000  # tokens; a row beyond is damage, and a prompt of it would fill the memory
T = TypeVar("T")
DATE = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d)?")


def read_trace(path: Path) -> list[PlannedRequest]:
    """Read a trace, in order of arrival; the first request comes at 0.

    Raises: ConfigError if the file cannot be read or is empty, or naming the first bad line.
    """
    parse = _mooncake_rows if path.suffix in (".jsonl", ".json") else _csv_rows
    rows = sorted(_read(path, parse), key=lambda row: row.arrival_s)
    start_s = rows[0].arrival_s
    return [
        replace(row, index=index, arrival_s=row.arrival_s - start_s)
        for index, row in enumerate(rows)
    ]


def read_lengths(path: Path) -> list[tuple[int, int]]:
    """(input, output) tokens of each row of a CSV or a trace, in the file's order.

    Raises: ConfigError as `read_trace`.
    """
    if path.suffix in (".jsonl", ".json"):
        return [(row.input_len, row.output_len) for row in _read(path, _mooncake_rows)]
    return _read(path, _csv_lengths)


def read_counts(path: Path) -> list[float]:
    """Arrivals in each bin, one number a row, in the file's order: a CSV with a column `count`.

    Raises: ConfigError as `read_trace`.
    """
    return _read(path, _csv_counts)


def _read(path: Path, parse: Callable[[Iterable[str]], Iterator[T]]) -> list[T]:
    """All rows of a file; what is wrong with one becomes an error that names its line."""
    number = 0

    def lines(file: Iterable[str]) -> Iterator[str]:
        nonlocal number
        for number, line in enumerate(file, 1):  # noqa: B007 the message below names it
            yield line

    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(parse(lines(file)))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, csv.Error, RecursionError) as error:
        raise ConfigError(f"{path}, line {number}: {' '.join(str(error).split())}") from None
    if not rows:
        raise ConfigError(f"{path} holds no request")
    return rows


def _mooncake_rows(lines: Iterable[str]) -> Iterator[PlannedRequest]:
    """Rows of timestamp (ms), input_length, output_length and hash_ids."""
    for line in lines:
        if not line.strip():
            continue
        found = json.loads(line)
        if not isinstance(found, dict):
            raise ValueError("not a JSON object")
        hash_ids = found.get("hash_ids", [])
        if not isinstance(hash_ids, list) or not all(type(name) is int for name in hash_ids):
            raise ValueError("hash_ids must be a list of whole numbers")
        yield PlannedRequest(
            arrival_s=_number(found.get("timestamp"), "timestamp") / 1e3,
            input_len=_length(found.get("input_length"), "input_length"),
            output_len=_length(found.get("output_length"), "output_length"),
            hash_ids=tuple(hash_ids),
        )


def _csv_rows(lines: Iterable[str]) -> Iterator[PlannedRequest]:
    """A time, an input and an output column; without a header these three in this order."""
    for time, input_len, output_len in _columns(
        lines, (TIME_COLUMNS, INPUT_COLUMNS, OUTPUT_COLUMNS)
    ):
        yield PlannedRequest(
            arrival_s=_time(time),
            input_len=_length(input_len, "input"),
            output_len=_length(output_len, "output"),
        )


def _csv_lengths(lines: Iterable[str]) -> Iterator[tuple[int, int]]:
    """An input and an output column; without a header these two in this order."""
    for input_len, output_len in _columns(lines, (INPUT_COLUMNS, OUTPUT_COLUMNS)):
        yield _length(input_len, "input"), _length(output_len, "output")


def _csv_counts(lines: Iterable[str]) -> Iterator[float]:
    """A column of counts; without a header the first."""
    for (text,) in _columns(lines, (COUNT_COLUMNS,)):
        count = _number(text, "count")
        if not 0 <= count <= MAX_COUNT:
            raise ValueError(f"count={text!r}: 0 to {MAX_COUNT} requests come in a bin")
        yield count


def _columns(lines: Iterable[str], wanted: Sequence[tuple[str, ...]]) -> Iterator[list[str]]:
    """The wanted columns of each row, found by the header's names or, without one, by position."""
    rows = (row for row in csv.reader(lines) if any(cell.strip() for cell in row))
    first = next(rows, None)
    if first is None:
        return
    names = [cell.strip().lower() for cell in first]
    if any(name in known for name in names for known in wanted):
        places = [_place(names, known) for known in wanted]
    else:
        places = list(range(len(wanted)))
        yield _cells(first, places)
    for row in rows:
        yield _cells(row, places)


def _place(names: Sequence[str], known: tuple[str, ...]) -> int:
    place = next((names.index(name) for name in known if name in names), None)
    if place is None:
        raise ValueError(f"no column is called {' or '.join(known)}; there are {', '.join(names)}")
    return place


def _cells(row: Sequence[str], places: Sequence[int]) -> list[str]:
    if max(places) >= len(row):
        raise ValueError(f"{len(row)} columns, {max(places) + 1} are needed")
    return [row[place].strip() for place in places]


def _time(text: str) -> float:
    """Seconds: of a number, or of a date with any number of decimals (Azure writes seven)."""
    found = DATE.fullmatch(text)
    if found is None:
        return _number(text, "timestamp")
    day, clock, fraction, zone = found.groups()
    offset = (zone or "+00:00").replace("Z", "+00:00")
    moment = datetime.datetime.fromisoformat(f"{day}T{clock}{offset}")
    return moment.timestamp() + float(fraction or 0)


def _number(value: object, name: str) -> float:
    is_number = isinstance(value, (int, float, str)) and not isinstance(value, bool)
    try:
        number = float(value) if is_number else math.nan  # type: ignore[arg-type]
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name}={value!r} is no number")
    return number


def _length(value: object, name: str) -> int:
    number = _number(value, name)
    if number != int(number) or not 1 <= number <= MAX_LENGTH:
        raise ValueError(f"{name}={value!r}: a number of tokens is whole, 1 to {MAX_LENGTH}")
    return int(number)
