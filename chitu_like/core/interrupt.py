"""Ctrl-C at a good moment: between two steps, never in the middle of one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def deferred_interrupt() -> Iterator[None]:
    """Let a first Ctrl-C wait until the block is done; a second one does not wait.

    Half a step would leave scheduler and executor with different ideas of what was computed. Where
    the program handles SIGINT itself, or this is not its main thread, nothing is changed.

    Raises: KeyboardInterrupt at the end of the block, or inside it at the second Ctrl-C.
    """
    if not _is_default():
        yield
        return
    with _counted_interrupts() as was_pressed:
        yield
    if was_pressed():
        raise KeyboardInterrupt


@contextmanager
def noted_interrupt() -> Iterator[Callable[[], bool]]:
    """Only note a first Ctrl-C in the block; a second one raises KeyboardInterrupt there.

    Yields: a function that says whether it was pressed.
    """
    if not _is_default():
        yield lambda: False
        return
    with _counted_interrupts() as was_pressed:
        yield was_pressed


def _is_default() -> bool:
    is_main = threading.current_thread() is threading.main_thread()
    return is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler


@contextmanager
def _counted_interrupts() -> Iterator[Callable[[], bool]]:
    num_pressed = 0

    def press(number: int, frame: FrameType | None) -> None:
        nonlocal num_pressed
        num_pressed += 1
        if num_pressed > 1:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, press)
    try:
        yield lambda: num_pressed > 0
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
