"""Which instances to start: how many, of which parallelism, for which phase; in yaml:

device: H200
instances:
  - {role: prefill, tp: 2, pp: 1, count: 3}
  - {role: decode, tp: 1, pp: 1, count: 2}
goodput: 12.5        # requests/s, if a search said so
"""  # noqa: D415 the yaml is the point

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from chitu_like.cluster.placement import Role
from chitu_like.cluster.record import Plain, Record, write_yaml
from chitu_like.core.errors import ConfigError

MAX_DEGREE = 1024
MAX_INSTANCES = 4096


@dataclass(frozen=True, kw_only=True, order=True)
class Parallelism:
    """How one instance is cut.

    Attributes:
        tp: devices that share each layer.
        pp: stages that share the layers.
    """

    tp: int
    pp: int

    @property
    def num_devices(self) -> int:
        """Of one instance."""
        return self.tp * self.pp

    def __str__(self) -> str:
        return f"tp {self.tp} pp {self.pp}"


@dataclass(frozen=True, kw_only=True)
class InstanceGroup:
    """Equal instances.

    Attributes:
        role: what they do.
        parallelism: of each.
        count: how many.
    """

    role: Role
    parallelism: Parallelism
    count: int


@dataclass(frozen=True, kw_only=True)
class InstancePlan:
    """Instances of one model on devices of one kind.

    Attributes:
        device: of the profile.
        groups: either unified ones alone, or prefill and decode.
        goodput: requests/s within the SLO, as predicted; None: nobody said.
    """

    device: str
    groups: tuple[InstanceGroup, ...]
    goodput: float | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError for roles that cannot serve together."""
        roles = {group.role for group in self.groups}
        if roles not in ({Role.UNIFIED}, {Role.PREFILL, Role.DECODE}):
            names = ", ".join(sorted(role.value for role in roles)) or "none"
            raise ConfigError(
                f"instances are {names}: use unified ones alone, or both prefill and decode"
            )
        if (count := sum(group.count for group in self.groups)) > MAX_INSTANCES:
            raise ConfigError(f"{count} instances: use at most {MAX_INSTANCES}")

    @property
    def num_devices(self) -> int:
        """Of all instances."""
        return sum(group.parallelism.num_devices * group.count for group in self.groups)


def write_instance_plan(plan: InstancePlan, path: Path, comment: str = "") -> None:
    """Write a file that `read_instance_plan` reads back as the same."""
    groups: list[Plain] = [
        {
            "role": group.role.value,
            "tp": group.parallelism.tp,
            "pp": group.parallelism.pp,
            "count": group.count,
        }
        for group in plan.groups
    ]
    values: dict[str, Plain] = {"device": plan.device, "instances": groups}
    if plan.goodput is not None:
        values["goodput"] = plan.goodput
    write_yaml(path, values, comment)


def read_instance_plan(path: Path) -> InstancePlan:
    """Read what `write_instance_plan` writes.

    Raises: ConfigError naming file, place and key.
    """
    record = Record.read(path)
    record.only("device", "instances", "goodput")
    try:
        return InstancePlan(
            device=record.text("device"),
            groups=tuple(_group(entry) for entry in record.records("instances")),
            goodput=record.quantity("goodput", {"/s": 1.0}) if record.has("goodput") else None,
        )
    except ConfigError as error:
        text = str(error)
        raise error if text.startswith(str(path)) else ConfigError(f"{path}: {text}") from None


def _group(entry: Record) -> InstanceGroup:
    entry.only("role", "tp", "pp", "count")
    roles = {role.value: role for role in Role}
    if entry.text("role") not in roles:
        raise entry.broken("role", f"one of {', '.join(roles)}")
    return InstanceGroup(
        role=roles[entry.text("role")],
        parallelism=Parallelism(
            tp=entry.whole("tp", low=1, high=MAX_DEGREE, default=1),
            pp=entry.whole("pp", low=1, high=MAX_DEGREE, default=1),
        ),
        count=entry.whole("count", low=1, high=MAX_INSTANCES, default=1),
    )
