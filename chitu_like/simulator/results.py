"""What a simulation found: named figures, per node and link, over time; as JSON, CSV and a table."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.table import Table

from chitu_like.core.errors import ConfigError

RESULT_FILE, TIMELINE_FILE = "result.json", "timeline.csv"


@dataclass(frozen=True, kw_only=True)
class Slo:
    """What a request must keep to count as good; None: no bound.

    Attributes:
        ttft_s: seconds to the first token at most.
        tpot_s: seconds per later token at most, on the request's average.
    """

    ttft_s: float | None = None
    tpot_s: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("ttft_s", self.ttft_s), ("tpot_s", self.tpot_s)):
            if value is not None and not value > 0:
                raise ConfigError(f"SLO {name}={value}: give more than 0 seconds")

    def scale(self, ttft_s: float, tpot_s: float | None) -> float:
        """How many times as long the bounds would have to be for a request to keep both."""
        ratios = [0.0]
        if self.ttft_s is not None:
            ratios.append(ttft_s / self.ttft_s)
        if self.tpot_s is not None and tpot_s is not None:
            ratios.append(tpot_s / self.tpot_s)
        return max(ratios)


@dataclass(frozen=True, kw_only=True)
class Results:
    """Everything that a run found, ready to be written.

    Attributes:
        figures: by name. `decode_tokens_per_s` counts output tokens, the first of a request too;
            `prompt_tokens_per_s` prompts when they are through; `avg_prompt_latency_s` is the mean
            TTFT, `avg_decode_latency_s` the mean TPOT. None where nothing was there to measure.
        nodes: utilisation (0 to 1) and KV use of each node, instance or pipeline stage.
        links: utilisation and bytes_per_s of each link.
        timeline: columns over `time_s`, as amounts a second: counts are rates, levels are means.
        cdfs: of ttft_s, tpot_s, e2e_s and slo_scale, how many times as long the SLO's bounds would
            have to be: points (value, share). The last is the curve of attainment over SLO scale.
        slo: what goodput was counted with.
    """

    figures: Mapping[str, float | None]
    nodes: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    links: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    timeline: Mapping[str, Sequence[float]] = field(default_factory=dict)
    cdfs: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    slo: Slo | None = None

    def __getitem__(self, figure: str) -> float:
        """A figure that there must be."""
        value = self.figures[figure]
        if value is None:
            raise ConfigError(f"{figure}: the simulation saw nothing to take it from")
        return value

    def with_figures(self, figures: Mapping[str, float | None]) -> Results:
        """The same with more figures, such as a placement's max_flow; they stand in front."""
        return replace(self, figures={**figures, **self.figures})

    def as_json(self) -> dict[str, object]:
        """One JSON object, the figures at its top level."""
        return {
            **self.figures,
            "slo": None if self.slo is None else vars(self.slo),
            "nodes": self.nodes,
            "links": self.links,
            "cdfs": self.cdfs,
            "timeline": self.timeline,
        }

    def write(self, folder: Path) -> None:
        """Write result.json and timeline.csv.

        Raises: ConfigError if they cannot be written.
        """
        text = json.dumps(self.as_json(), indent=1) + "\n"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / RESULT_FILE).write_text(text, encoding="utf-8")
            with (folder / TIMELINE_FILE).open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(self.timeline)
                writer.writerows(zip(*self.timeline.values(), strict=True))
        except OSError as error:
            raise ConfigError(f"{folder} cannot be written: {error.strerror}") from None

    def table(self, title: str = "simulation") -> Table:
        """The figures for the eye."""
        table = Table(title=title, show_header=False)
        for name, value in self.figures.items():
            table.add_row(name, "-" if value is None else f"{value:,.5g}")
        for kind in (self.nodes, self.links):
            for name, found in kind.items():
                shares = (f"{key} {value:.4g}" for key, value in found.items() if value is not None)
                table.add_row(name, ", ".join(shares))
        return table
