"""Layer placements as yaml, in and out.

    num_layers: 80
    layers:
      compute_node_2: 0-11        # first and last, both included
      compute_node_3: 12          # a single one

A plan (planner/layer_plan.py) is the same with more keys beside these two, so whoever needs only the
layers reads either.
"""

from __future__ import annotations

import re
from pathlib import Path

from chitu_like.cluster.layer_placement import LayerPlacement
from chitu_like.cluster.record import Plain, Record, write_yaml
from chitu_like.core.errors import ConfigError

MAX_LAYERS = 10_000  # models have a hundred or so; more is a slip, and would be expanded
_RANGE = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?", re.ASCII)


def read_layer_placement(path: Path) -> LayerPlacement:
    """Read a placement, or the placement of a plan.

    Raises: ConfigError naming file and key.
    """
    return placement_from(Record.read(path))


def write_layer_placement(placement: LayerPlacement, path: Path, comment: str = "") -> None:
    """Write a file that `read_layer_placement` reads back as the same."""
    write_yaml(path, placement_values(placement), comment)


def placement_values(placement: LayerPlacement) -> dict[str, Plain]:
    """The two keys of the file."""
    held: dict[str, Plain] = {
        name: f"{layers.start}-{layers.stop - 1}" if len(layers) > 1 else layers.start
        for name, layers in placement.held.items()
    }
    return {"num_layers": placement.num_layers, "layers": held}


def placement_from(record: Record) -> LayerPlacement:
    """The placement of a record that has these two keys; others are not looked at.

    Raises: ConfigError naming file and key.
    """
    num_layers = record.whole("num_layers", low=1, high=MAX_LAYERS)
    layers = record.record("layers")
    held = {name: _parse_range(layers, name) for name in layers.keys()}  # noqa: SIM118 no dict
    try:
        return LayerPlacement(num_layers, held)
    except ConfigError as error:
        raise ConfigError(f"{layers.where}: {error}") from None


def _parse_range(layers: Record, name: str) -> range:
    found = _RANGE.fullmatch(layers.text(name))
    if found is None:
        raise layers.broken(name, "the first and the last layer, like 0-11, or one layer")
    return range(int(found[1]), int(found[2] or found[1]) + 1)
