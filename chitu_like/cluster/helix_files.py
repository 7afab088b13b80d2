"""Files of Helix (arXiv:2406.01566): clusters, machines, solutions and its simulator's clusters.

In all of them kbps, mbps and gbps are thousands, millions and billions of BYTES a second. What a cluster
file calls ComputeNode-i, its other files call compute_node_<i + offset>, and so do we.

The coordinator's own network cards are read and checked, then left out: requests come in and go out as
token ids of two bytes, which no card is too slow for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from chitu_like.cluster.helix_machines import (
    Machine,
    link_figures,
    machine_from,
    speed_from,
)
from chitu_like.cluster.ini_file import IniFile
from chitu_like.cluster.layer_placement import LayerPlacement
from chitu_like.cluster.layer_placement_file import MAX_LAYERS
from chitu_like.cluster.topology import SINK, SOURCE, Cluster, Link, Node
from chitu_like.cluster.units import HELIX_RATES
from chitu_like.core.errors import ConfigError

OFFSET = 2
"""Places that Helix's own tools leave for source and sink before the first compute node."""
MAX_NODES = 100_000
_COMPUTE, _LINK = "ComputeNode-", "Link-"
_LINK_SECTION = re.compile(r"Link-(source|\d{1,6})-(sink|\d{1,6})", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Solution:
    """Which node holds which layers.

    Attributes:
        offset: compute_node_<offset> is ComputeNode-0.
        held: name in lower case, as keys of ini files are -> layers; nodes that hold none are absent.
    """

    offset: int
    held: Mapping[str, range]

    def placement(self, cluster: Cluster, num_layers: int | None, path: Path) -> LayerPlacement:
        """As a placement on that cluster.

        Args:
            cluster: which has all these nodes.
            num_layers: of the model; None: up to the last layer that is held.
            path: of the solution, for messages.

        Raises: ConfigError for nodes that do not exist, or layers that the model does not have.
        """
        by_lower = {name.lower(): name for name in cluster.by_name}
        for name in self.held:
            if name not in by_lower:
                raise ConfigError(f"{path}: [Solution] {name}: the cluster has no such node")
        last = max((layers.stop for layers in self.held.values()), default=0)
        if not last:
            raise ConfigError(f"{path}: [Solution]: no node holds a layer")
        held = {by_lower[name]: layers for name, layers in self.held.items()}
        try:
            return LayerPlacement(num_layers or last, held)
        except ConfigError as error:
            raise ConfigError(f"{path}: [Solution]: {error}") from None


def is_simulator_cluster(path: Path) -> bool:
    """Whether it is the simulator's form of a cluster, which says itself what its machines are."""
    return IniFile(path).has("ComputeNodes")


def read_helix_cluster(
    path: Path, machines: Mapping[str, Machine], *, offset: int = OFFSET
) -> Cluster:
    """Read a cluster ini.

    Args:
        path: of the file.
        machines: type -> machine; types match without case, if need be.
        offset: ComputeNode-0 is called compute_node_<offset>.

    Raises: ConfigError naming file, section and key.
    """
    ini = IniFile(path)
    num_nodes = ini.whole("NodeNames", "total_compute_nodes", low=1, high=MAX_NODES)
    known = ("NodeNames", "SourceNode", "SinkNode")
    for section in ini.sections:
        if not section.startswith((_COMPUTE, _LINK)) and section not in known:
            raise ConfigError(
                f"{path}: unknown section [{section}]: use {', '.join(known)}, {_COMPUTE}i, "
                f"{_LINK}a-b"
            )
    numbers = {str(index): f"compute_node_{index + offset}" for index in range(num_nodes)}
    _check_compute_sections(ini, numbers)
    types = [_machine_of(ini, f"{_COMPUTE}{number}", machines) for number in numbers]
    nodes = tuple(
        machine.node(name, device)
        for name, (device, machine) in zip(numbers.values(), types, strict=True)
    )
    links = tuple(_both_ways(ini, numbers))
    _check_connections(ini, numbers)
    return _cluster(path, nodes, links)


def read_simulator_cluster(path: Path) -> Cluster:
    """Read a simulator cluster ini.

    Its kv_cache_capacity and activation_backup_capacity follow from the layers that a placement put
    there; here they follow from the profile, so they are checked and left out.

    Raises: ConfigError naming file, section and key.
    """
    ini = IniFile(path)
    for key in ("inbound_nic_speed", "outbound_nic_speed"):
        speed_from(ini, "Coordinator", key, HELIX_RATES)
    types = ini.names("MachineTypes", "types")
    names = ini.names("ComputeNodes", "names")
    link_names = ini.names("Links", "names")
    known = {"Coordinator", "MachineTypes", "ComputeNodes", "Links", *names, *link_names}
    for section in ini.sections:
        if section not in known:
            raise ConfigError(
                f"{path}: section [{section}] is neither among [ComputeNodes] names nor [Links] names"
            )
    nodes = tuple(_simulator_node(ini, name, types) for name in names)
    return _cluster(path, nodes, tuple(_simulator_link(ini, name) for name in link_names))


def read_solution(path: Path) -> Solution:
    """Read a solution ini.

    Raises: ConfigError naming file, section and key.
    """
    ini = IniFile(path)
    offset = ini.whole("Settings", "offset", low=0, high=MAX_NODES)
    held: dict[str, range] = {}
    for name in ini.keys("Solution"):
        where = ini.where("Solution", name)
        layers = [
            ini.as_whole(word, where, low=0, high=MAX_LAYERS - 1)
            for word in ini.names("Solution", name)
        ]
        if layers and layers != list(range(layers[0], layers[0] + len(layers))):
            raise ConfigError(f"{where}: a node holds consecutive layers, in order, like [3, 4, 5]")
        if layers:
            held[name] = range(layers[0], layers[-1] + 1)
    return Solution(offset=offset, held=held)


def _machine_of(ini: IniFile, section: str, machines: Mapping[str, Machine]) -> tuple[str, Machine]:
    """The type that a section names, as the profile spells it, and its machine."""
    device = ini.name(section, "type")
    by_lower = {known.lower(): known for known in machines}
    known = device if device in machines else by_lower.get(device.lower())
    where = f"{ini.where(section, 'type')}={device}"
    if known is None:
        raise ConfigError(f"{where}: the machine profile has {', '.join(machines)}")
    if machines[known].memory_bytes == math.inf:
        raise ConfigError(f"{where}: the machine profile says vram_size = -1: give bytes")
    return known, machines[known]


def _check_compute_sections(ini: IniFile, numbers: Mapping[str, str]) -> None:
    for section in ini.sections:
        if section.startswith(_COMPUTE) and section.removeprefix(_COMPUTE) not in numbers:
            raise ConfigError(
                f"{ini.path}: [{section}]: [NodeNames] total_compute_nodes={len(numbers)} means "
                f"{_COMPUTE}0 to {_COMPUTE}{len(numbers) - 1}"
            )


def _both_ways(ini: IniFile, numbers: Mapping[str, str]) -> Iterator[Link]:
    ends = {SOURCE: SOURCE, SINK: SINK, **numbers}
    for section in ini.sections:
        if not section.startswith(_LINK):
            continue
        found = _LINK_SECTION.fullmatch(section)
        if found is None or not {found[1], found[2]} <= ends.keys() or found[1] == found[2]:
            raise ConfigError(
                f"{ini.path}: [{section}]: a link is Link-a-b of two nodes, 0 to "
                f"{len(numbers) - 1}, or Link-source-a, or Link-a-sink"
            )
        if found.groups() == (SOURCE, SINK):
            raise ConfigError(f"{ini.path}: [{section}]: the coordinator has no link to itself")
        bandwidth, latency_s = link_figures(ini, section)
        for a, b in (found.groups(), found.groups()[::-1]):
            if a != SINK and b != SOURCE:
                yield Link(source=ends[a], target=ends[b], bandwidth=bandwidth, latency_s=latency_s)


def _check_connections(ini: IniFile, numbers: Mapping[str, str]) -> None:
    """Lists of neighbours and links name the same pairs; one of the two ends is enough."""
    listed = dict(_connections(ini, numbers))
    linked = {
        frozenset(section.removeprefix(_LINK).split("-"))
        for section in ini.sections
        if section.startswith(_LINK)
    }
    for pair, section in listed.items():
        if pair not in linked:
            raise ConfigError(
                f"{ini.where(section, 'connected_nodes')}: there is no section [{_called(pair)}]"
            )
    for section in sorted(map(_called, linked - listed.keys())):
        raise ConfigError(
            f"{ini.path}: [{section}]: neither end has the other in its connected_nodes"
        )


def _called(pair: frozenset[str]) -> str:
    """The section of a link between two ends."""
    ends = sorted(pair, key=lambda end: (end != SOURCE, end == SINK, len(end), end))
    return f"{_LINK}{ends[0]}-{ends[1]}"


def _connections(ini: IniFile, numbers: Mapping[str, str]) -> Iterator[tuple[frozenset[str], str]]:
    """(pair of ends, section that names it)."""
    sections = {SOURCE: "SourceNode", SINK: "SinkNode"}
    sections |= {number: f"{_COMPUTE}{number}" for number in numbers}
    for end, section in sections.items():
        for other in ini.names(section, "connected_nodes"):
            if other not in sections or other == end:
                raise ConfigError(
                    f"{ini.where(section, 'connected_nodes')}: {other} is no other node: use 0 to "
                    f"{len(numbers) - 1}, 'source' or 'sink'"
                )
            yield frozenset((end, other)), section


def _simulator_node(ini: IniFile, name: str, types: list[str]) -> Node:
    device = ini.name(name, "machine_type")
    if device not in types:
        raise ConfigError(
            f"{ini.where(name, 'machine_type')}={device}: [MachineTypes] types has {', '.join(types)}"
        )
    for key in ("kv_cache_capacity", "activation_backup_capacity"):
        ini.whole(name, key, low=0, high=10**18)
    return machine_from(ini, name).node(name, device)


def _simulator_link(ini: IniFile, name: str) -> Link:
    bandwidth, latency_s = link_figures(ini, name)
    return Link(
        source=ini.name(name, "in"),
        target=ini.name(name, "out"),
        bandwidth=bandwidth,
        latency_s=latency_s,
    )


def _cluster(path: Path, nodes: tuple[Node, ...], links: tuple[Link, ...]) -> Cluster:
    try:
        return Cluster(nodes, links)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
