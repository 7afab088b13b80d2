"""Figures in files of Helix (arXiv:2406.01566): of machines, which have a file of their own, and links.

kbps, mbps and gbps are thousands, millions and billions of BYTES a second there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from chitu_like.cluster.ini_file import IniFile
from chitu_like.cluster.topology import Node
from chitu_like.cluster.units import HELIX_BYTES, HELIX_RATES, HELIX_SECONDS, Units
from chitu_like.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A type of machine: the fields of Node that a type decides, inf where the file says -1."""

    memory_bytes: float
    nic_in: float
    nic_out: float
    disk: float

    def node(self, name: str, device: str) -> Node:
        """A node of this type."""
        return Node(
            name=name,
            device=device,
            memory_bytes=self.memory_bytes,
            nic_in=self.nic_in,
            nic_out=self.nic_out,
            disk=self.disk,
        )


def read_machines(path: Path) -> dict[str, Machine]:
    """Read a machine profile ini: type -> machine.

    Raises: ConfigError naming file, section and key.
    """
    ini = IniFile(path)
    machines = {section: machine_from(ini, section) for section in ini.sections}
    if not machines:
        raise ConfigError(f"{path}: there is no section: give one for each type of machine")
    return machines


def machine_from(ini: IniFile, section: str) -> Machine:
    """A section with the four figures of a machine."""
    return Machine(
        memory_bytes=speed_from(ini, section, "vram_size", HELIX_BYTES),
        nic_in=speed_from(ini, section, "inbound_nic_speed", HELIX_RATES),
        nic_out=speed_from(ini, section, "outbound_nic_speed", HELIX_RATES),
        disk=speed_from(ini, section, "disk_speed", HELIX_RATES),
    )


def speed_from(ini: IniFile, section: str, key: str, units: Units) -> float:
    """A figure above 0, or inf for -1."""
    value = ini.quantity(section, key, units)
    if value == -1:
        return math.inf
    if value <= 0:
        raise ConfigError(
            f"{ini.where(section, key)}={ini.text(section, key)}: give more than 0, or -1 for none"
        )
    return value


def link_figures(ini: IniFile, section: str) -> tuple[float, float]:
    """Bandwidth and latency of a section that is a link."""
    bandwidth = ini.quantity(section, "bandwidth", HELIX_RATES)
    latency_s = ini.quantity(section, "latency", HELIX_SECONDS)
    for key, is_wrong in (("bandwidth", bandwidth <= 0), ("latency", latency_s < 0)):
        if is_wrong:
            raise ConfigError(
                f"{ini.where(section, key)}={ini.text(section, key)}: give "
                f"{'more than 0' if key == 'bandwidth' else '0 or more'}"
            )
    return bandwidth, latency_s
