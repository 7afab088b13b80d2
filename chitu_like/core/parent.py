"""What becomes of a process whose parent is killed."""

from __future__ import annotations

import ctypes
import signal
import sys

PR_SET_PDEATHSIG = 1


def signal_when_parent_dies(number: signal.Signals) -> None:
    """Have the system signal this process when its parent dies, whatever this one is stuck in.

    Linux alone can. Its parent is the thread that started it, which must live as long.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number)
