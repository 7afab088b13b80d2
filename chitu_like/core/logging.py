"""One log format for every process: time, level, rank, then the message.

`configure_logging` is called once by each process that this package owns (never by a library
user's program); everybody else writes `logger = logging.getLogger(__name__)`.
"""

import copy
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from chitu_like.core.errors import ConfigError

PACKAGE = "chitu_like"


def start_time() -> str:
    """Name of this run's log folder, for example "2025-11-21_10-49-00"."""
    return time.strftime("%Y-%m-%d_%H-%M-%S")


def configure_logging(
    *,
    rank: int | str,
    log_dir: str | Path | None = None,
    started: str | None = None,
    level: int = logging.INFO,
    console_level: int = logging.INFO,
    secrets: Sequence[str] = (),
) -> Path | None:
    """Send this package's log to stderr and to `log_dir/<started>/rankN.log`.

    Where there is a file, stderr gets one line of an exception and the file gets its trace. A second
    call replaces the first; loggers of other packages are left alone.

    Args:
        rank: the rank that stands in every line; a process that is none says its role ("http"),
            and writes to http.log.
        log_dir: folder of all runs; None writes no file.
        started: the run's folder, the same on every rank; None: now.
        level: least severe level written.
        console_level: least severe level written to stderr.
        secrets: texts replaced by *** wherever they would be written.

    Returns: the file written to, or None.
    Raises: ConfigError if the folder cannot be made or the file not opened.
    """
    console = logging.StreamHandler(sys.stderr)
    console.setLevel(console_level)
    handlers: list[logging.Handler] = [console]
    name = f"rank{rank}" if isinstance(rank, int) else rank
    path = None
    if log_dir is not None:
        path = Path(log_dir).expanduser() / (started or start_time()) / f"{name}.log"
        handlers.append(_open_file(path))
    logger = logging.getLogger(PACKAGE)
    for old in list(logger.handlers):
        logger.removeHandler(old)
        old.close()
    for handler in handlers:
        is_file = isinstance(handler, logging.FileHandler)
        handler.setFormatter(LineFormatter(name, secrets, None if is_file else path))
        logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
    return path


def _open_file(path: Path) -> logging.Handler:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"log_dir: cannot write {path}: {error.strerror}; set log_dir to a writable folder"
        ) from None


class LineFormatter(logging.Formatter):
    """Write `time LEVEL rank logger: message`, with secrets masked.

    Text that clients sent may stand in a message, so control characters are written as escapes and
    continued lines are indented: no message can pass for a line of its own.

    Args:
        name: what stands in the place of the rank.
        secrets: texts to mask.
        trace_file: where another formatter writes the traces that this one leaves out; None: here.
    """

    def __init__(
        self, name: str, secrets: Sequence[str] = (), trace_file: Path | None = None
    ) -> None:
        super().__init__(f"%(asctime)s.%(msecs)03d %(levelname)-7s {name} %(name)s: %(message)s")
        self.datefmt = "%Y-%m-%d %H:%M:%S"
        self._trace_file = trace_file
        self._secrets = tuple(sorted(filter(None, secrets), key=len, reverse=True))

    def format(self, record: logging.LogRecord) -> str:
        """Format a record; see the class."""
        if self._trace_file is not None and record.exc_info and record.exc_info[1]:
            record = _without_trace(record, record.exc_info[1], self._trace_file)
        text = super().format(record)
        for secret in self._secrets:
            text = text.replace(secret, "***")
        first, *rest = text.split("\n")
        return "\n    ".join(map(_printable, [first, *rest]))


def _without_trace(
    record: logging.LogRecord, error: BaseException, trace_file: Path
) -> logging.LogRecord:
    """The record with the exception in one line. Other handlers still have theirs whole."""
    message = record.getMessage()
    cause = str(error).strip().partition("\n")[0]
    if not cause or cause not in message:
        message += f": {type(error).__name__}" + (f": {cause}" if cause else "")
    short = copy.copy(record)
    short.msg, short.args = f"{message} (trace in {trace_file})", ()
    short.exc_info = short.exc_text = None
    return short


def _printable(line: str) -> str:
    if line.isprintable():
        return line
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in line
    )
