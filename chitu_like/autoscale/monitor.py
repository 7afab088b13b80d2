"""Load signals: what the policy looks at, read from the instances and smoothed a little."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Signals:
    """The load of all instances together.

    Attributes:
        waiting_prefill_tokens: prompt tokens that nobody has computed yet (W).
        used_kv_tokens: tokens for whose keys and values decode instances hold blocks (U), those of a
            copy that has begun included.
        migrating_tokens: prompt tokens for which no decode instance had room yet.
    """

    waiting_prefill_tokens: float = 0.0
    used_kv_tokens: float = 0.0
    migrating_tokens: float = 0.0


class Monitor:
    """Remembers signals over a window, so that one short burst does not look like a load.

    What is too little is told by the newest signals, since waiting costs users time; what is too much
    by the largest of the window, since an instance that is gone takes seconds to come back.

    Args:
        window_s: how far back it looks.
    """

    def __init__(self, window_s: float) -> None:
        """Start with nothing seen."""
        self._window_s = window_s
        self._seen: deque[tuple[float, Signals]] = deque()

    def observe(self, now_s: float, signals: Signals) -> None:
        """Take in what is measured now; times never go back."""
        self._seen.append((now_s, signals))
        while self._seen[0][0] < now_s - self._window_s:
            self._seen.popleft()

    @property
    def newest(self) -> Signals:
        """What was observed last; zeros at first."""
        return self._seen[-1][1] if self._seen else Signals()

    @property
    def peak(self) -> Signals:
        """The largest of each signal in the window."""
        seen = [signals for _, signals in self._seen] or [Signals()]
        return Signals(
            waiting_prefill_tokens=max(s.waiting_prefill_tokens for s in seen),
            used_kv_tokens=max(s.used_kv_tokens for s in seen),
            migrating_tokens=max(s.migrating_tokens for s in seen),
        )
