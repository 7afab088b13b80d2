"""What every reader of checkpoints offers: tensors by Hugging Face name, read as they are sliced."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from chitu_like.quantization.parameter import LazyTensor


class CheckpointReader(ABC):
    """A checkpoint open for reading; a context manager that closes its files.

    Args:
        ckpt_dir: the folder, for messages.
        num_bytes: of all weight files: what iterating reads in the end.
    """

    def __init__(self, ckpt_dir: Path, num_bytes: int) -> None:
        self.ckpt_dir = ckpt_dir
        self.num_bytes = num_bytes

    @abstractmethod
    def __iter__(self) -> Iterator[tuple[str, LazyTensor]]:
        """Every tensor once, by Hugging Face name, file by file, in the order of the bytes.

        A tensor stays valid after the next one; using each at once keeps the reading sequential.

        Raises: CheckpointError, naming file and tensor, where the files are not what they should be.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of every file."""

    def __enter__(self) -> CheckpointReader:
        """Files are opened as iteration reaches them."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()
