"""How busy a GPU was, from the spans of its kernels: pure arithmetic over a profiler's trace.

Kernels may overlap (several streams, programmatic dependent launch), so the busy time is the length of
their union. What lies between is idle, and a gap is known by the kernels it lies between: in a steady
state every step has the same ones.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

DEVICE_CATEGORIES = ("kernel", "gpu_memcpy", "gpu_memset")
"""What torch's profiler calls work on a CUDA device in a Chrome trace."""


@dataclass(frozen=True, kw_only=True, order=True)
class Span:
    """One piece of work on the device; microseconds on any clock."""

    start_us: float
    end_us: float
    name: str


@dataclass(frozen=True, kw_only=True)
class GapKind:
    """All gaps between the same two kernels.

    Attributes:
        before, after: names of the kernels.
        count: how many gaps.
        total_us: their lengths together.
        longest_us: of one.
    """

    before: str
    after: str
    count: int
    total_us: float
    longest_us: float


@dataclass(frozen=True, kw_only=True)
class Activity:
    """What a device did between its first and its last piece of work.

    Attributes:
        num_spans: pieces of work.
        busy_us: something ran.
        elapsed_us: from the first start to the last end.
        gaps: when nothing ran, the kind with the longest total first.
    """

    num_spans: int
    busy_us: float
    elapsed_us: float
    gaps: list[GapKind]

    @property
    def idle_share(self) -> float:
        """Part of the time in which nothing ran; 0 where there was no time."""
        return 1.0 - self.busy_us / self.elapsed_us if self.elapsed_us else 0.0


def device_spans(events: Iterable[Mapping[str, object]]) -> list[Span]:
    """The device's work among the events of a Chrome trace ("traceEvents"), by start."""
    found = []
    for event in events:
        start_us, length_us = event.get("ts"), event.get("dur")
        if event.get("cat") not in DEVICE_CATEGORIES or event.get("ph") != "X":
            continue
        if isinstance(start_us, (int, float)) and isinstance(length_us, (int, float)):
            name = str(event.get("name"))
            found.append(Span(start_us=start_us, end_us=start_us + length_us, name=name))
    return sorted(found)


def activity(spans: Sequence[Span]) -> Activity:
    """Busy time and gaps.

    Args:
        spans: by start, as `device_spans` gives them; may overlap.
    """
    if not spans:
        return Activity(num_spans=0, busy_us=0.0, elapsed_us=0.0, gaps=[])
    gaps: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    last = spans[0]  # of the work so far, what ended last
    idle_us = 0.0
    for span in spans[1:]:
        if span.start_us > last.end_us:
            length_us = span.start_us - last.end_us
            idle_us += length_us
            gaps[last.name, span.name].append(length_us)
        if span.end_us >= last.end_us:
            last = span
    elapsed_us = last.end_us - spans[0].start_us
    kinds = [
        GapKind(
            before=before,
            after=after,
            count=len(lengths),
            total_us=sum(lengths),
            longest_us=max(lengths),
        )
        for (before, after), lengths in gaps.items()
    ]
    return Activity(
        num_spans=len(spans),
        busy_us=elapsed_us - idle_us,
        elapsed_us=elapsed_us,
        gaps=sorted(kinds, key=lambda kind: kind.total_us, reverse=True),
    )


def busiest(spans: Iterable[Span]) -> list[tuple[str, int, float]]:
    """(name, count, total microseconds) of each kernel, the longest total first."""
    total: defaultdict[str, list[float]] = defaultdict(list)
    for span in spans:
        total[span.name].append(span.end_us - span.start_us)
    rows = [(name, len(lengths), sum(lengths)) for name, lengths in total.items()]
    return sorted(rows, key=lambda row: row[2], reverse=True)


def short_name(name: str) -> str:
    """A kernel's name for people: without C++'s return type, namespaces, templates and arguments."""
    if "::" not in name:
        return name
    plain = name.removeprefix("void ").replace("(anonymous namespace)::", "")
    return re.split(r"[<(]", plain, maxsplit=1)[0].rpartition("::")[2]
