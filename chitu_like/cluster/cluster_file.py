"""Clusters as yaml, in and out.

    nodes:
      - {name: big, device: A100, memory_bytes: 40 * GB, nic_in: 10 * GB/s, nic_out: 10 * GB/s}
      - {name: small, count: 8, device: L4, memory_bytes: 24 * GB, region: east}   # small-0 .. small-7
    links:
      - {source: source, target: all, bandwidth: 1 * GB/s, latency_s: 1 * ms}
      - {source: all, target: all, bandwidth: 1 * GB/s, latency_s: 1 * ms}
      - {source: [big, small-0], target: sink, bandwidth: 1 * GB/s, latency_s: 1 * ms}

Keys are the fields of Node and Link. `all` is every node; an entry with several ends means every pair of
them, but no link from a node to itself. Figures are plain numbers or times a unit (units.py).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from chitu_like.cluster.record import Plain, Record, write_yaml
from chitu_like.cluster.topology import Cluster, Link, Node
from chitu_like.cluster.units import BYTES, RATES, SECONDS, format_quantity
from chitu_like.config.files import values_dir
from chitu_like.core.errors import ConfigError

MAX_NODES = 4096
MAX_LINKS = 250_000  # 500 nodes, each connected to each
ALL = "all"
_RATES_OF_A_NODE = ("nic_in", "nic_out", "disk")


def read_cluster(path: Path) -> Cluster:
    """Read a cluster.

    Raises: ConfigError naming file, place and key.
    """
    record = Record.read(path)
    record.only("nodes", "links")
    nodes: list[Node] = []
    for entry in record.records("nodes"):
        nodes += _nodes(entry, MAX_NODES - len(nodes))
    links: list[Link] = []
    names = [node.name for node in nodes]
    for entry in record.records("links"):
        links += _links(entry, names, MAX_LINKS - len(links))
    try:
        return Cluster(tuple(nodes), tuple(links))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def write_cluster(cluster: Cluster, path: Path, comment: str = "") -> None:
    """Write a file that `read_cluster` reads back as the same cluster, bit for bit.

    Args:
        cluster: nodes and links; they keep their order.
        path: whose folder is made if need be.
        comment: lines for the top of the file.
    """
    values: dict[str, Plain] = {
        "nodes": [_node_values(node) for node in cluster.nodes],
        "links": list(_link_values(cluster.links)),
    }
    write_yaml(path, values, comment)


def find_cluster(name_or_path: str) -> Path:
    """The file that `cluster=` means: a path, or a name in config/clusters/.

    Raises: ConfigError if there is none, with the names there are.
    """
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    folder = values_dir() / "clusters"
    names = sorted(file.stem for file in folder.glob("*.yaml"))
    if name_or_path in names:
        return folder / f"{name_or_path}.yaml"
    close = difflib.get_close_matches(name_or_path, names, n=1)
    hint = f"did you mean {close[0]}?" if close else f"give a file, or one of {', '.join(names)}"
    raise ConfigError(f"cluster={name_or_path}: no such file or name: {hint}")


def _nodes(entry: Record, room: int) -> Iterator[Node]:
    entry.only("name", "count", "device", "memory_bytes", *_RATES_OF_A_NODE, "region")
    count = entry.whole("count", low=1, high=MAX_NODES, default=1)
    if count > room:
        raise ConfigError(f"{entry.where}: too many nodes: {MAX_NODES} at most")
    name, device, region = entry.text("name"), entry.text("device"), entry.text("region", "")
    memory_bytes = entry.quantity("memory_bytes", BYTES)
    nic_in, nic_out, disk = (entry.quantity(key, RATES, math.inf) for key in _RATES_OF_A_NODE)
    for index in range(count):
        yield Node(
            name=f"{name}-{index}" if entry.has("count") else name,
            device=device,
            memory_bytes=memory_bytes,
            nic_in=nic_in,
            nic_out=nic_out,
            disk=disk,
            region=region,
        )


def _links(entry: Record, names: Sequence[str], room: int) -> Iterator[Link]:
    entry.only("source", "target", "bandwidth", "latency_s")
    sources, targets = _ends(entry, "source", names), _ends(entry, "target", names)
    if len(sources) * len(targets) > room:
        raise ConfigError(f"{entry.where}: too many links: {MAX_LINKS} at most")
    bandwidth = entry.quantity("bandwidth", RATES)
    latency_s = entry.quantity("latency_s", SECONDS, 0.0)
    several = len(sources) * len(targets) > 1
    for source in sources:
        for target in targets:
            if source != target or not several:
                yield Link(source=source, target=target, bandwidth=bandwidth, latency_s=latency_s)


def _ends(entry: Record, key: str, names: Sequence[str]) -> Sequence[str]:
    if isinstance(entry.get(key), list):
        return entry.texts(key)
    end = entry.text(key)
    return names if end == ALL else [end]


def _node_values(node: Node) -> dict[str, Plain]:
    values: dict[str, Plain] = {
        "name": node.name,
        "device": node.device,
        "memory_bytes": format_quantity(node.memory_bytes, BYTES),
    }
    rates = {"nic_in": node.nic_in, "nic_out": node.nic_out, "disk": node.disk}
    values |= {key: format_quantity(rate, RATES) for key, rate in rates.items() if rate < math.inf}
    if node.region:
        values["region"] = node.region
    return values


def _link_values(links: Sequence[Link]) -> Iterator[dict[str, Plain]]:
    """An entry for neighbours in the list that leave the same node with the same figures."""
    for (source, bandwidth, latency_s), group in groupby(
        links, key=lambda link: (link.source, link.bandwidth, link.latency_s)
    ):
        targets: list[Plain] = [link.target for link in group]
        yield {
            "source": source if source != ALL else [source],
            "target": targets[0] if len(targets) == 1 and targets[0] != ALL else targets,
            "bandwidth": format_quantity(bandwidth, RATES),
            "latency_s": format_quantity(latency_s, SECONDS),
        }
