"""A row for every answered request, written while the simulation runs."""

from __future__ import annotations

import csv
from pathlib import Path
from types import TracebackType

from chitu_like.core.errors import ConfigError
from chitu_like.simulator.recorder import FinishedRequest

REQUEST_FILE = "requests.csv"
COLUMNS = (
    "index",
    "arrival_s",
    "first_token_s",
    "finished_s",
    "input_len",
    "output_len",
    "num_cached_tokens",
    "place",
    "ttft_s",
    "tpot_s",
    "e2e_s",
)


class RequestLog:
    """Writes FOLDER/requests.csv; use as a context, and call it with each FinishedRequest.

    Args:
        folder: made if it is not there.

    Raises: ConfigError if the file cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        """Write the header."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / REQUEST_FILE).open("w", encoding="utf-8", newline="")
        except OSError as error:
            raise ConfigError(f"{folder} cannot be written: {error.strerror}") from None
        self._writer = csv.writer(self._file)
        self._writer.writerow(COLUMNS)

    def __call__(self, request: FinishedRequest) -> None:
        """Write its row."""
        self._writer.writerow([getattr(request, column) for column in COLUMNS])

    def __enter__(self) -> RequestLog:
        """Nothing more to open."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self._file.close()
