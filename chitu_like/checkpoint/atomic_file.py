"""A file that is either there and whole, or not there: whoever dies while writing leaves no half."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

TEMPORARY_SUFFIX = ".part"


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Write `path`, which gets its name only when all bytes are on disk; nobody sees it before.

    Raises: OSError; the half-written file is removed then.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def is_temporary(name: str) -> bool:
    """Whether a file of that name was begun here and not finished."""
    return name.startswith(".") and name.endswith(TEMPORARY_SUFFIX)


def _sync_folder(folder: Path) -> None:
    """Bring the new name to disk too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
