"""The answers of `chitu-like generate`: on the disk as soon as they end, in order when all did."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol, TextIO

from chitu_like.core.errors import ConfigError

Row = Mapping[str, object]


class ResultWriter(Protocol):
    """Takes answers in any order; a context manager that ends the writing."""

    def write(self, row: Row) -> None:
        """Keep a row; row["line"] says where it belongs."""
        ...

    def __enter__(self) -> ResultWriter: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class ResultFile:
    """A JSON-lines file: each answer is appended when it ends; `with` leaves it sorted.

    Whatever stops the process, every answer that ended is in the file. Only a process that was
    killed leaves it out of order, which `read_results` does not mind.

    Args:
        path: the file.
        kept: rows of an earlier run to begin with.

    Raises: ConfigError if it cannot be written.
    """

    def __init__(self, path: Path, kept: list[Row]) -> None:
        self._path = path
        self._rows = list(kept)
        try:
            # An earlier run may have been killed in the middle of a line: write what is whole.
            _replace(path, self._rows)
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--output {path}: cannot be written: {error.strerror}") from None

    def write(self, row: Row) -> None:
        """See ResultWriter."""
        self._rows.append(row)
        self._file.write(_line(row))
        self._file.flush()

    def __enter__(self) -> ResultFile:
        """The file is open already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Put the rows in order, in one step that cannot be half done."""
        self._file.close()
        _replace(self._path, sorted(self._rows, key=line_of))


class ResultStream:
    """Standard output: rows in order, each as soon as those before it are there.

    Args:
        stream: written to.
        order: line numbers in the order in which rows go out.
    """

    def __init__(self, stream: TextIO, order: list[int]) -> None:
        self._stream = stream
        self._order = order
        self._next = 0
        self._held: dict[int, Row] = {}

    def write(self, row: Row) -> None:
        """See ResultWriter."""
        self._held[line_of(row)] = row
        while self._next < len(self._order) and self._order[self._next] in self._held:
            self._put(self._held.pop(self._order[self._next]))
            self._next += 1

    def __enter__(self) -> ResultStream:
        """Nothing to open."""
        return self

    def __exit__(self, *_: object) -> None:
        """After an interrupt: what was held back for rows that never came."""
        for line in sorted(self._held):
            self._put(self._held[line])

    def _put(self, row: Row) -> None:
        self._stream.write(_line(row))
        self._stream.flush()


def open_results(path: str, order: list[int], kept: list[Row]) -> ResultWriter:
    """The writer for `path`; "-" is standard output."""
    if path == "-":
        return ResultStream(sys.stdout, order)
    return ResultFile(Path(path), kept)


def read_results(path: Path) -> list[Row]:
    """The whole answers of an earlier run; those with an error, cut short, or half written are not.

    Raises: ConfigError if the file cannot be read.
    """
    rows: dict[int, Row] = {}
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"--output {path}: cannot be read: {error.strerror}") from None
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue  # the process was killed while it wrote this
        if not isinstance(row, dict) or type(row.get("line")) is not int:
            raise ConfigError(f"--output {path}: not written by chitu-like generate: {line[:60]}")
        if row.get("finish_reason") in ("stop", "length"):
            rows[row["line"]] = row
    return list(rows.values())


def line_of(row: Row) -> int:
    """The number of the input line that a row answers."""
    line = row["line"]
    assert isinstance(line, int), f"a row without its line number: {row}"
    return line


def _line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _replace(path: Path, rows: list[Row]) -> None:
    """Write all rows beside the file, then put them in its place."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("w", encoding="utf-8") as file:
            file.writelines(_line(row) for row in rows)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
