"""Serving with layers that are still on their way: ZigZag scheduling (BlitzScale, OSDI'25, section 6).

A new instance pairs with an overloaded one. It runs the oldest batch as far as its layers reach, then
the next ones, and goes back to the oldest when a layer lands. The old instance, when it is free, takes
the oldest batch with its activations and runs the layers that are left. So the new one does more and
more of each batch, by itself: nothing has to be solved.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

BatchT = TypeVar("BatchT")


class _Entry(Generic[BatchT]):
    """A batch and how many of its layers are computed."""

    __slots__ = ("batch", "is_running", "num_layers")

    def __init__(self, batch: BatchT) -> None:
        self.batch = batch
        self.num_layers = 0
        self.is_running = False


class ZigZag(Generic[BatchT]):
    """The queue that both instances take from.

    Every batch passes all layers once, in order: first ones on the new instance, the rest on either.

    Args:
        num_layers: of the model.
    """

    def __init__(self, num_layers: int) -> None:
        """Start empty, with no layer loaded."""
        self._num_layers = num_layers
        self._num_ready = 0
        self._queue: deque[_Entry[BatchT]] = deque()

    def __len__(self) -> int:
        """Batches that nobody has taken to their end."""
        return len(self._queue)

    @property
    def num_ready(self) -> int:
        """Layers that have landed on the new instance."""
        return self._num_ready

    def land(self, num_ready: int) -> None:
        """So many layers have landed in all; a count that only grows."""
        if not self._num_ready <= num_ready <= self._num_layers:
            raise ValueError(
                f"{num_ready} layers are ready after {self._num_ready} of {self._num_layers}"
            )
        self._num_ready = num_ready

    def add(self, batch: BatchT) -> None:
        """Queue a batch behind all others."""
        self._queue.append(_Entry(batch))

    def next_for_new(self) -> tuple[BatchT, range] | None:
        """The new instance is free: the oldest batch that its layers take further, and which layers."""
        for entry in self._queue:
            if not entry.is_running and entry.num_layers < self._num_ready:
                entry.is_running = True
                return entry.batch, range(entry.num_layers, self._num_ready)
        return None

    def computed(self, batch: BatchT, layers: range) -> bool:
        """The new instance has computed what it was given. Returns: whether the batch is complete."""
        entry = next(e for e in self._queue if e.batch is batch)
        entry.is_running = False
        entry.num_layers = layers.stop
        if entry.num_layers < self._num_layers:
            return False
        self._queue.remove(entry)
        return True

    def next_for_old(self) -> tuple[BatchT, range] | None:
        """The old instance is free: the oldest batch that rests, and the layers left to compute."""
        for entry in self._queue:
            if not entry.is_running:
                self._queue.remove(entry)
                return entry.batch, range(entry.num_layers, self._num_layers)
        return None
