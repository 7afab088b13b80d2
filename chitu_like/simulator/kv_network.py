"""Keys and values on their way between instances: each sends one copy at a time, and receives one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from chitu_like.cluster.topology import Link
from chitu_like.simulator.clock import VirtualClock
from chitu_like.simulator.recorder import Recorder


class KvCopy:
    """A copy that has begun; `cancel` keeps its end from being told, not its bytes from moving."""

    def __init__(self, on_done: Callable[[], None]) -> None:
        self._on_done: Callable[[], None] | None = on_done

    def cancel(self) -> None:
        """Forget who waits for it."""
        self._on_done = None

    def end(self) -> None:
        """The last byte is there."""
        if self._on_done is not None:
            self._on_done()


class KvNetwork:
    """Links between all instances, alike and as wide as all network cards of an instance together.

    Args:
        clock: of the simulation.
        link: between any two; its ends are not looked at.
        recorder: told what each pair of instances moved.
    """

    def __init__(self, clock: VirtualClock, link: Link, recorder: Recorder) -> None:
        """Start with nothing on its way."""
        self._clock = clock
        self._link = link
        self._recorder = recorder
        self._out_free_s: defaultdict[str, float] = defaultdict(float)
        self._in_free_s: defaultdict[str, float] = defaultdict(float)

    def copy(
        self, source: str, target: str, num_bytes: float, on_done: Callable[[], None]
    ) -> KvCopy:
        """Move bytes once both ends are free, first come, first served."""
        start_s = max(self._clock.now_s, self._out_free_s[source], self._in_free_s[target])
        end_s = start_s + self._link.seconds(num_bytes)
        self._out_free_s[source] = self._in_free_s[target] = end_s
        copy = KvCopy(on_done)

        def end() -> None:
            self._recorder.carries(f"{source} -> {target}", start_s, end_s, num_bytes)
            copy.end()

        self._clock.at(end_s, end)
        return copy
