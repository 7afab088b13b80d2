"""A profile: what models cost on devices, in one folder.

::

    model.json                        model -> its facts
    devices.json                      device -> its figures, for the roofline; may be absent
    <model>/<device>/steps.json       fits of whole steps; may be absent
    <model>/<device>/*.csv, machine.json    tables of one layer; may be absent

Names of devices match without regard to case. What was measured comes before what is computed: tables,
then fits, then the roofline.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from chitu_like.cluster.cost_model import LayerTimes, ModelFacts, StepCost
from chitu_like.cluster.kv_capacity import UTILIZATION, kv_tokens
from chitu_like.cluster.layer_tables import PROMPT_FILE, LayerTables
from chitu_like.cluster.profile_files import read_record, write_record
from chitu_like.cluster.profile_records import (
    HostCost,
    ModelRecord,
    PlanningFigures,
    StepsRecord,
)
from chitu_like.cluster.roofline import DeviceFigures, RooflineStep, model_facts
from chitu_like.cluster.step_fit import DistServeStep, FittedStep
from chitu_like.cluster.step_layers import StepLayers
from chitu_like.config.files import values_dir
from chitu_like.core.errors import ConfigError
from chitu_like.core.model_spec import ModelSpec

MODELS_FILE, DEVICES_FILE, STEPS_FILE = "model.json", "devices.json", "steps.json"
_SEVERAL = re.compile(r"(.+)x([1-9][0-9]?)")  # T4x2: a node of two T4

Key = tuple[str, str]
"""Model, and device in lower case."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Costs of models on devices.

    Attributes:
        models: by name.
        tables: times of one layer.
        steps: fits of whole steps.
        devices: figures, by the device's name.
        name: where it comes from, for messages.
        specs: shapes of models that no file describes; not written.
    """

    models: Mapping[str, ModelRecord]
    tables: Mapping[Key, LayerTables] = field(default_factory=dict)
    steps: Mapping[Key, StepsRecord] = field(default_factory=dict)
    devices: Mapping[str, DeviceFigures] = field(default_factory=dict)
    name: str = "the profile"
    specs: Mapping[str, ModelSpec] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for model, record in self.models.items():
            record.check(f"{self.name}: {model}")
        for device, figures in self.devices.items():
            figures.check(f"{self.name}: {device}")
        for (model, device), steps in self.steps.items():
            steps.check(f"{self.name}: {model} on {device}")
        for model, _ in (*self.tables, *self.steps):
            self._record(model)

    @classmethod
    def read(cls, folder: Path) -> Profile:
        """Read a folder.

        Raises: ConfigError naming the file, and what is wrong in it.
        """
        models = read_record(folder / MODELS_FILE, dict[str, ModelRecord])
        devices: dict[str, DeviceFigures] = {}
        if (folder / DEVICES_FILE).exists():
            devices = read_record(folder / DEVICES_FILE, dict[str, DeviceFigures])
        tables: dict[Key, LayerTables] = {}
        steps: dict[Key, StepsRecord] = {}
        for model in models:
            if not _is_plain(model):
                raise ConfigError(f"{folder / MODELS_FILE}: {model!r} is no name of a folder")
            for inner in sorted(path for path in folder.glob(f"{model}/*") if path.is_dir()):
                key = (model, inner.name.lower())
                if (inner / PROMPT_FILE).exists():
                    tables[key] = LayerTables.read(inner, model=model, device=inner.name)
                if (inner / STEPS_FILE).exists():
                    steps[key] = read_record(inner / STEPS_FILE, StepsRecord)
        return cls(models=models, tables=tables, steps=steps, devices=devices, name=str(folder))

    def write(self, folder: Path) -> None:
        """Write a folder that `read` reads.

        Raises: ConfigError for names that no folder has, and if it cannot be written.
        """
        for name in (*self.models, *(device for _, device in (*self.tables, *self.steps))):
            if not _is_plain(name):
                raise ConfigError(f"{folder}: {name!r} is no name of a folder: call it otherwise")
        write_record(folder / MODELS_FILE, self.models)
        if self.devices:
            write_record(folder / DEVICES_FILE, self.devices)
        for (model, device), tables in self.tables.items():
            tables.write(folder / model / device)
        for (model, device), steps in self.steps.items():
            write_record(folder / model / device / STEPS_FILE, steps)

    def with_model(self, name: str, spec: ModelSpec) -> Profile:
        """This profile and a model that the roofline can tell about; one that is there stays."""
        if name in self.models:
            return self
        record = ModelRecord.of(model_facts(name, spec))
        return replace(self, models={**self.models, name: record}, specs={**self.specs, name: spec})

    def model(self, name: str) -> ModelFacts:
        """What placing a model takes to know. Raises: ConfigError with the models there are."""
        return self._record(name).facts(name)

    def planning(self, model: str) -> PlanningFigures:
        """What Helix assumes, in the profile's words or by default."""
        return self._record(model).planning or PlanningFigures()

    def devices_of(self, model: str) -> list[str]:
        """Devices that this profile can tell a model's times on; several of one make no new entry."""
        measured = {device for name, device in (*self.tables, *self.steps) if name == model}
        found = {device: device for device in measured}
        if self._spec(model) is not None:
            found |= {device.lower(): device for device in self.devices}
        return [found[device] for device in sorted(found)]

    def layer_times(self, model: str, device: str) -> LayerTimes:
        """Times of one layer.

        Raises: ConfigError where the profile has none, with the devices it has.
        """
        if tables := self.tables.get((model, device.lower())):
            return tables
        facts, planning = self.model(model), self.planning(model)
        layer = self.step_cost(model, device, num_layers=1, is_first=False, is_last=False)
        memory = self._memory_bytes(model, device)
        _, count = self._device(device)
        return StepLayers(
            facts=facts,
            device=device,
            layer=layer,
            memory_bytes=memory * count,
            mean_input=planning.mean_input,
            mean_output=planning.mean_output,
            longest_input=planning.longest_input,
        )

    def layer_times_of(self, model: str, devices: Iterable[str]) -> dict[str, LayerTimes]:
        """Times of one layer on each of the devices. Raises: as layer_times."""
        return {device: self.layer_times(model, device) for device in devices}

    def step_cost(
        self,
        model: str,
        device: str,
        *,
        tp: int = 1,
        num_layers: int | None = None,
        is_first: bool = True,
        is_last: bool = True,
    ) -> StepCost:
        """The cost of a pipeline stage.

        Args:
            model: its name.
            device: its name; `T4x2` is two of them, which multiplies tp.
            tp: devices that share each layer.
            num_layers: of the stage; None: all.
            is_first: requests enter here.
            is_last: the head is computed here.

        Raises: ConfigError where the profile has none, with the devices or degrees it has.
        """
        facts = self.model(model)
        held = facts.num_layers if num_layers is None else num_layers
        if not 1 <= held <= facts.num_layers:
            raise ConfigError(f"{model} has {facts.num_layers} layers: a stage cannot have {held}")
        steps = self.steps.get((model, device.lower()))
        if steps is not None and tp in steps.fitted:
            where = f"{self.name}: {model} on {device}: fitted[{tp}]"
            return FittedStep(
                steps.fitted[tp],
                share=steps.fitted[tp].share(facts.num_layers, held, is_last=is_last),
                where=where,
            )
        if steps is not None and tp in steps.distserve:
            pp = facts.num_layers / held
            return DistServeStep(fit=steps.distserve[tp], pp=pp, is_first=is_first)
        base, count = self._device(device)
        spec = self._spec(model)
        if spec is not None and base in self.devices:
            return RooflineStep(
                self.devices[base],
                spec,
                tp=tp * count,
                num_layers=held,
                is_last=is_last,
                device=base,
            )
        if steps is not None:
            known = ", ".join(map(str, sorted({*steps.fitted, *steps.distserve}))) or "none"
            raise ConfigError(
                f"{self.name}: {model} on {device}: tp={tp}: it has fits of tp {known}"
            )
        raise self._unknown(model, device)

    def host_cost(self, model: str, device: str) -> HostCost:
        """What the engine takes for a step beside computing it; nothing where nobody measured."""
        steps = self.steps.get((model, device.lower()))
        return (steps and steps.host) or HostCost(step_s=0.0, request_s=0.0)

    def kv_blocks(
        self,
        model: str,
        device: str,
        *,
        tp: int = 1,
        num_layers: int | None = None,
        is_last: bool = True,
        memory_bytes: float | None = None,
        utilization: float = UTILIZATION,
        block_size: int = 16,
    ) -> int:
        """KV blocks of a pipeline stage; 0 where the weights leave no room.

        Args:
            model: its name.
            device: as in step_cost.
            tp: devices that share each layer.
            num_layers: of the stage; None: all.
            is_last: embeddings and head count here.
            memory_bytes: of one device; None: as the profile says, measured capacities first.
            utilization: share of the memory to plan for.
            block_size: tokens a block.

        Raises: ConfigError where nobody said how much memory the device has.
        """
        facts = self.model(model)
        held = facts.num_layers if num_layers is None else num_layers
        if memory_bytes is None:
            steps = self.steps.get((model, device.lower()))
            for row in () if steps is None else steps.capacity:
                if row.tp == tp and row.pp == -(-facts.num_layers // held):
                    return row.max_num_tokens // block_size
            memory_bytes = self._memory_bytes(model, device)
        _, count = self._device(device)
        weights = held * facts.layer_bytes + (facts.embedding_bytes if is_last else 0.0)
        tokens = kv_tokens(
            facts,
            memory_bytes=memory_bytes,
            tp=tp * count,
            num_layers=held,
            weight_bytes=weights,
            utilization=utilization,
        )
        return tokens // block_size

    def _record(self, model: str) -> ModelRecord:
        if model not in self.models:
            known = ", ".join(sorted(self.models)) or "none"
            raise ConfigError(f"{self.name} has no model {model}: it has {known}")
        return self.models[model]

    def _spec(self, model: str) -> ModelSpec | None:
        where = f"{self.name}: {model}: hf_config"
        return self.specs.get(model) or self._record(model).spec(where)

    def _device(self, device: str) -> tuple[str, int]:
        """The name that `devices` knows it by, and how many a node has."""
        names = {name.lower(): name for name in self.devices}
        lower, count = device.lower(), 1
        several = _SEVERAL.fullmatch(lower)
        if several is not None and lower not in names:
            lower, count = several[1], int(several[2])
        return names.get(lower, device), count

    def _memory_bytes(self, model: str, device: str) -> float:
        """Of one device. Raises: ConfigError where nobody said."""
        steps = self.steps.get((model, device.lower()))
        if steps is not None and steps.memory_bytes > 0:
            return steps.memory_bytes
        figures = self.devices.get(self._device(device)[0])
        if figures is not None:
            return figures.memory_bytes
        if steps is None:
            raise self._unknown(model, device)
        raise ConfigError(
            f"{self.name}: nobody said how much memory {device} has: give memory_bytes in "
            f"{model}/{device.lower()}/{STEPS_FILE}"
        )

    def _unknown(self, model: str, device: str) -> ConfigError:
        known = ", ".join(self.devices_of(model)) or "none"
        return ConfigError(
            f"{self.name} has no times of {model} on {device}: it has {known}; measure it with "
            "script/profile_model.py, or name another profile"
        )


def find_profile(name_or_path: str) -> Profile:
    """The profile in a folder, or of that name in config/profiles/.

    Raises: ConfigError with the names there are.
    """
    folder = Path(name_or_path).expanduser()
    if (folder / MODELS_FILE).is_file():
        return Profile.read(folder)
    known = values_dir() / "profiles"
    if _is_plain(name_or_path) and (known / name_or_path / MODELS_FILE).is_file():
        return Profile.read(known / name_or_path)
    if folder.is_dir():
        raise ConfigError(f"profile={name_or_path}: the folder holds no {MODELS_FILE}")
    names = ", ".join(sorted(path.parent.name for path in known.glob(f"*/{MODELS_FILE}")))
    raise ConfigError(f"profile={name_or_path}: no such folder; give a path, or one of {names}")


def _is_plain(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) is not None
