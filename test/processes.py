"""What tests of several processes need to know of a machine that may be slow and busy."""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections.abc import Callable, Iterable

import psutil

PATIENCE_S = 120.0
"""For what comes in milliseconds where the machine is idle: torch alone may take many seconds to
import on a busy one. A test that passes never waits for so long."""
ASLEEP_S = 0.25


def until(condition: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
    """Wait for something that will be true."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.05)


def free_port() -> int:
    """A port for a program that will listen later.

    It is below those which the system hands out by itself, so that no connection made meanwhile
    takes it.
    """
    chance = random.SystemRandom()
    while True:
        port = chance.randrange(10_000, 22_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def is_alive(process: psutil.Process) -> bool:
    """Whether it still runs; one that has ended and nobody has asked how does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def alive(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that still run."""
    return [process for process in processes if is_alive(process)]


def until_asleep(pid: int) -> None:
    """Wait until the main thread of a process waits for something, for good."""
    process = psutil.Process(pid)
    asleep_since_s: float | None = None
    deadline_s = time.monotonic() + PATIENCE_S
    while asleep_since_s is None or time.monotonic() - asleep_since_s < ASLEEP_S:
        assert time.monotonic() < deadline_s, "it is never asleep"
        if process.status() != psutil.STATUS_SLEEPING:
            asleep_since_s = None
        elif asleep_since_s is None:
            asleep_since_s = time.monotonic()
        time.sleep(0.01)
