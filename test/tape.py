"""Recordings on a CPU that do what CUDA graphs do: they repeat operations on tensors, not Python.

What is recorded runs once, and each operation is kept with the very tensors that it read and gave. A
replay repeats them in their order and overwrites what they gave. So work that reads anything but those
tensors, another batch's or a number that Python computed, repeats what was true when it was recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from chitu_like.worker.recording import Cut

Part = Callable[[], None]


class Tape:
    """Work recorded in pieces, with what comes between them."""

    def __init__(self, work: Callable[[Cut], None]) -> None:
        self._parts: list[Part] = []
        with _Listening(self._parts):
            work(self._cut)

    def replay(self) -> None:
        for part in self._parts:
            part()

    def _cut(self, call: Callable[[Tensor], None], x: Tensor) -> None:
        self._parts.append(partial(call, x))


class _Listening(TorchDispatchMode):
    def __init__(self, parts: list[Part]) -> None:
        super().__init__()
        self._parts = parts

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        operation = partial(func, *args, **(kwargs or {}))
        given = operation()
        self._parts.append(partial(_repeat, operation, given))
        return given


def _repeat(operation: Callable[[], object], given: object) -> None:
    for old, new in zip(tree_leaves(given), tree_leaves(operation()), strict=True):
        if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
            old.copy_(new)
