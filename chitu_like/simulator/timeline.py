"""What happened when, in a fixed number of bins that widen as time goes on."""

from __future__ import annotations

MAX_BINS = 512
FIRST_WIDTH_S = 0.1


class Timeline:
    """Columns of bins of equal width; each holds an amount that came together within it.

    Attributes:
        width_s: of a bin; doubles whenever time outgrows the bins.
    """

    def __init__(self) -> None:
        """Start empty."""
        self.width_s = FIRST_WIDTH_S
        self._columns: dict[str, list[float]] = {}

    def add(self, column: str, time_s: float, amount: float) -> None:
        """Let an amount come at one instant."""
        index = int(time_s / self.width_s)
        while index >= MAX_BINS:
            self._widen()
            index = int(time_s / self.width_s)
        self._bins(column)[index] += amount

    def hold(self, column: str, start_s: float, end_s: float, value: float = 1.0) -> None:
        """Let value * seconds come, spread over [start_s, end_s)."""
        if value == 0 or end_s <= start_s:
            return
        while end_s / self.width_s >= MAX_BINS:
            self._widen()
        bins, width_s = self._bins(column), self.width_s
        index = int(start_s / width_s)
        if end_s <= (index + 1) * width_s:  # nearly always
            bins[index] += value * (end_s - start_s)
            return
        while start_s < end_s:
            stop_s = min(end_s, (index + 1) * width_s)
            bins[index] += value * max(0.0, stop_s - start_s)
            start_s = max(start_s, stop_s)
            index += 1

    def rows(self, end_s: float) -> dict[str, list[float]]:
        """`time_s`, where each bin starts, and each column as amount a second, up to `end_s`."""
        width_s = self.width_s
        count = min(MAX_BINS, int(end_s / width_s) + 1)
        times = {"time_s": [index * width_s for index in range(count)]}
        columns = sorted(self._columns.items())
        return times | {name: [x / width_s for x in bins[:count]] for name, bins in columns}

    def _bins(self, column: str) -> list[float]:
        bins = self._columns.get(column)
        if bins is None:
            bins = self._columns[column] = [0.0] * MAX_BINS
        return bins

    def _widen(self) -> None:
        self.width_s *= 2
        empty = [0.0] * (MAX_BINS // 2)
        for name, bins in self._columns.items():
            merged = [bins[i] + bins[i + 1] for i in range(0, MAX_BINS, 2)]
            self._columns[name] = merged + empty
