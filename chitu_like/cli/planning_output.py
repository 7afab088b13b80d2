"""What `chitu-like plan` prints, and where its files go."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.table import Table

from chitu_like.config.planning import PlanningConfig

RESULT_FILE = "result.json"


def placement_file(config: PlanningConfig, folder: Path | None) -> Path | None:
    """Where the placement goes: plan.out, else into the folder of results."""
    if config.plan.out is not None:
        return Path(config.plan.out).expanduser()
    return None if folder is None else folder / "placement.yaml"


def figures_table(title: str, figures: Mapping[str, object]) -> Table:
    """Named figures for the eye."""
    table = Table(title=title, show_header=False)
    for name, value in figures.items():
        if isinstance(value, float):
            table.add_row(name, f"{value:,.5g}")
        elif isinstance(value, (str, int)):
            table.add_row(name, str(value))
    return table
