"""Pictures of clusters: who stands where, who holds which layers, and how many tokens take which link.

matplotlib is an extra, asked for when a picture is drawn.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from chitu_like.cluster.layer_placement import LayerPlacement
from chitu_like.cluster.topology import SINK, SOURCE, Cluster, Link
from chitu_like.core.errors import ConfigError, UnsupportedError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Point: TypeAlias = tuple[float, float]
LinkFlow: TypeAlias = Mapping[tuple[str, str], float]

BAR = 0.7  # height of a node's bar; rows are 1 apart
SHADE = 0.45  # lines and names are read on top of it
WIDEST = 6.0  # points, of the line with the most flow
MAX_NAMED = 60  # nodes; more names than that cover each other


def draw_cluster(
    path: Path,
    cluster: Cluster,
    *,
    placement: LayerPlacement | None = None,
    link_flow: LinkFlow | None = None,
) -> None:
    """Draw a cluster; with a placement, along the layers of its model.

    Without a placement nodes stand in a circle, region by region, and lines are as dark as links are
    fast. With one each node is a bar over the layers it holds, and lines are links that requests may
    take there: all of them in grey, those that carry flow as wide as it is.

    Args:
        path: to write; its suffix says the format, e.g. .png, .svg or .pdf.
        cluster: nodes and links.
        placement: of layers on these nodes.
        link_flow: (source, target) -> tokens a second, for links that carry any.

    Raises: UnsupportedError without matplotlib; ConfigError if the file cannot be written, or the
        placement has nodes that the cluster has not.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UnsupportedError("drawings need matplotlib: pip install 'chitu-like[plot]'")
    if placement is not None and not placement.held.keys() <= cluster.by_name.keys():
        unknown = sorted(placement.held.keys() - cluster.by_name.keys())
        raise ConfigError(f"the placement names node {unknown[0]}, which the cluster has not")
    from matplotlib.figure import Figure

    rows = {} if placement is None else rows_of(placement)
    height = 7.0 if placement is None else 2.5 + 0.6 * max(rows.values(), default=0)
    figure = Figure(figsize=(12 if placement else 8, height), layout="constrained")
    axes = figure.subplots()
    if placement is None:
        _draw_circle(axes, cluster, link_flow)
    else:
        _draw_layers(axes, cluster, placement, rows, link_flow)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.set_yticks([])
    _legend(axes, cluster)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:  # ValueError: a suffix that matplotlib does not know
        raise ConfigError(f"{path}: cannot be drawn: {' '.join(str(error).split())}") from None


def rows_of(placement: LayerPlacement) -> dict[str, int]:
    """A row for each node such that no two in a row hold the same layer; as few rows as there can be."""
    ends: list[int] = []  # where each row is free from
    rows: dict[str, int] = {}
    for name, layers in sorted(
        placement.held.items(), key=lambda item: (item[1].start, item[1].stop)
    ):
        row = next((row for row, end in enumerate(ends) if end <= layers.start), len(ends))
        ends[row : row + 1] = [layers.stop]
        rows[name] = row
    return rows


def usable_links(cluster: Cluster, placement: LayerPlacement) -> list[Link]:
    """Links that a request may take: its next layer is held where the link ends."""
    held = placement.held
    last = placement.num_layers

    def may_take(link: Link) -> bool:
        if link.source != SOURCE and link.source not in held:
            return False
        done = 0 if link.source == SOURCE else held[link.source].stop
        if link.target == SINK:
            return done == last
        return link.target in held and done in held[link.target]

    return [link for link in cluster.links if may_take(link)]


def _draw_layers(
    axes: Axes,
    cluster: Cluster,
    placement: LayerPlacement,
    rows: Mapping[str, int],
    link_flow: LinkFlow | None,
) -> None:
    """Bars over the layers; a line leaves a bar's end for the bar that goes on."""
    middle = max(rows.values(), default=0) / 2
    margin = placement.num_layers / 20
    coordinator = {SOURCE: (-margin, middle), SINK: (placement.num_layers + margin, middle)}
    colors = _colors(cluster)
    for name, layers in placement.held.items():
        color = colors[cluster.by_name[name].device]
        axes.barh(
            rows[name],
            len(layers),
            left=layers.start,
            height=BAR,
            color=color,
            alpha=SHADE,
            edgecolor="white",
        )
        is_narrow = len(layers) * 16 < placement.num_layers
        held = f"{layers.start}-{layers.stop - 1}" if len(layers) > 1 else str(layers.start)
        axes.text(
            (layers.start + layers.stop) / 2,
            rows[name],
            (" " if is_narrow else "\n").join((name, held)),
            ha="center",
            va="center",
            fontsize=6,
            rotation=90 if is_narrow else 0,
        )
    inset = (
        placement.num_layers / 80
    )  # into either bar, so that neighbours in a row have a line too
    for link in usable_links(cluster, placement):
        done = 0 if link.source == SOURCE else placement.held[link.source].stop
        leave = done - min(inset, len(placement.held.get(link.source, ())) / 2)
        enter = done + inset * (link.source != SOURCE)
        start = coordinator.get(link.source) or (leave, rows[link.source])
        end = coordinator.get(link.target) or (enter, rows[link.target])
        _line(axes, start, end, _width(link, link_flow))
    _coordinator(axes, coordinator)
    unused = [node.name for node in cluster.nodes if node.name not in placement.held]
    axes.set_xlabel("layer" + (f"   (no layer: {', '.join(unused[:MAX_NAMED])})" if unused else ""))
    axes.set_xlim(-2 * margin, placement.num_layers + 2 * margin)
    axes.invert_yaxis()


def _draw_circle(axes: Axes, cluster: Cluster, link_flow: LinkFlow | None) -> None:
    nodes = sorted(cluster.nodes, key=lambda node: node.region)  # stable: else as they come
    angles = [2 * math.pi * index / len(nodes) for index in range(len(nodes))]
    places = {
        node.name: (math.cos(angle), math.sin(angle))
        for node, angle in zip(nodes, angles, strict=True)
    }
    coordinator = {SOURCE: (-1.6, 0.0), SINK: (1.6, 0.0)}
    fastest = max((link.bandwidth for link in cluster.links), default=1.0)
    for link in cluster.links:
        start, end = ({**places, **coordinator}[name] for name in (link.source, link.target))
        if link_flow is not None:
            _line(axes, start, end, _width(link, link_flow))
        else:
            shade = 0.05 + 0.4 * link.bandwidth / fastest
            axes.plot(*zip(start, end, strict=True), color="black", alpha=shade, linewidth=0.5)
    colors = _colors(cluster)
    for node in nodes:
        x, y = places[node.name]
        axes.plot([x], [y], "o", markersize=12, color=colors[node.device])
        if len(nodes) <= MAX_NAMED:
            label = f"{node.name}\n{node.region}".rstrip()
            axes.text(1.15 * x, 1.1 * y, label, ha="center", va="center", fontsize=7)
    _coordinator(axes, coordinator)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)


def _line(axes: Axes, start: Point, end: Point, width: float | None) -> None:
    """An arrow, bent so that both directions are seen; grey where nothing is known to flow."""
    from matplotlib.patches import FancyArrowPatch

    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            connectionstyle="arc3,rad=0.2",
            arrowstyle="-|>",
            mutation_scale=8,
            shrinkA=0,
            shrinkB=2,
            linewidth=width or 0.6,
            color="tab:red" if width else "grey",
            alpha=0.7 if width else 0.5,
            zorder=3 if width else 2,
        )
    )


def _width(link: Link, link_flow: LinkFlow | None) -> float | None:
    """Points, for a link that carries flow."""
    flow = (link_flow or {}).get((link.source, link.target), 0.0)
    return max(0.5, WIDEST * flow / max((link_flow or {}).values())) if flow > 0 else None


def _coordinator(axes: Axes, places: Mapping[str, Point]) -> None:
    for name, (x, y) in places.items():
        axes.plot([x], [y], "s", markersize=12, color="black")
        axes.text(x, y, f"{name}\n\n", ha="center", va="bottom", fontsize=8)


def _colors(cluster: Cluster) -> dict[str, str]:
    """A color for each type of device, in the order they come in."""
    devices = dict.fromkeys(node.device for node in cluster.nodes)
    return {device: f"C{index % 10}" for index, device in enumerate(devices)}


def _legend(axes: Axes, cluster: Cluster) -> None:
    from matplotlib.patches import Patch

    devices = [node.device for node in cluster.nodes]
    handles = [
        Patch(color=color, label=f"{devices.count(device)} x {device}")
        for device, color in _colors(cluster).items()
    ]
    axes.legend(handles=handles, loc="upper left", fontsize=7, framealpha=0.7)
