"""What stands in the files of a profile."""

from __future__ import annotations

import msgspec

from chitu_like.cluster.cost_model import ModelFacts
from chitu_like.cluster.step_fit import DistServeFit, StepFit
from chitu_like.core.errors import ConfigError
from chitu_like.core.model_spec import ModelSpec


class PlanningFigures(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What Helix assumes of the load, and of devices to begin with; see planner/throughput.py.

    Attributes:
        mean_input, mean_output: tokens of a request and of its answer.
        longest_input: tokens of a prompt, at most.
        typical_layers: device -> layers.
        typical_layers_small: the same in clusters that hold the model barely more than once.
        start_speed: device -> tokens x layers a second, a first guess.
    """

    mean_input: float = 750.0
    mean_output: float = 240.0
    longest_input: int = 2048
    typical_layers: dict[str, int] = {}
    typical_layers_small: dict[str, int] = {}
    start_speed: dict[str, float] = {}

    def check(self, where: str) -> None:
        """Raise ConfigError for figures that no load has."""
        for key in ("mean_input", "mean_output", "longest_input"):
            if not 1 <= getattr(self, key) < 1e9:
                raise ConfigError(f"{where}: {key}={getattr(self, key)}: give 1 token or more")
        for key in ("typical_layers", "typical_layers_small", "start_speed"):
            for device, figure in getattr(self, key).items():
                if not figure > 0:
                    raise ConfigError(f"{where}: {key}: {device}={figure}: give more than 0")


class ModelRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model in model.json: ModelFacts without the name, and more.

    Attributes:
        hf_config: its architecture in config.json's terms, which a roofline needs.
        planning: None: the defaults.
    """

    num_layers: int
    layer_bytes: float
    activation_bytes: float
    token_bytes: float = 2.0
    kv_bytes_per_token: float = 0.0
    num_heads: int = 0
    num_kv_heads: int = 0
    embedding_bytes: float = 0.0
    planning: PlanningFigures | None = None
    hf_config: dict[str, object] | None = None

    @classmethod
    def of(
        cls,
        facts: ModelFacts,
        *,
        planning: PlanningFigures | None = None,
        hf_config: dict[str, object] | None = None,
    ) -> ModelRecord:
        """The record of facts."""
        return cls(
            num_layers=facts.num_layers,
            layer_bytes=facts.layer_bytes,
            activation_bytes=facts.activation_bytes,
            token_bytes=facts.token_bytes,
            kv_bytes_per_token=facts.kv_bytes_per_token,
            num_heads=facts.num_heads,
            num_kv_heads=facts.num_kv_heads,
            embedding_bytes=facts.embedding_bytes,
            planning=planning,
            hf_config=hf_config,
        )

    def facts(self, name: str) -> ModelFacts:
        """What placing the model takes to know."""
        return ModelFacts(
            name=name,
            num_layers=self.num_layers,
            layer_bytes=self.layer_bytes,
            activation_bytes=self.activation_bytes,
            token_bytes=self.token_bytes,
            kv_bytes_per_token=self.kv_bytes_per_token,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            embedding_bytes=self.embedding_bytes,
        )

    def spec(self, where: str) -> ModelSpec | None:
        """The model's shape, where the record has it. Raises: CheckpointError naming the key."""
        return None if self.hf_config is None else ModelSpec.from_hf_config(self.hf_config, where)

    def check(self, where: str) -> None:
        """Raise ConfigError for figures that no model has."""
        if not 1 <= self.num_layers <= 10_000:
            raise ConfigError(f"{where}: num_layers={self.num_layers}: give 1 to 10000")
        for key in ("layer_bytes", "activation_bytes", "token_bytes"):
            if not 0 < getattr(self, key) < float("inf"):
                raise ConfigError(f"{where}: {key}={getattr(self, key)}: give more than 0")
        for key in ("kv_bytes_per_token", "num_heads", "num_kv_heads", "embedding_bytes"):
            if not 0 <= getattr(self, key) < float("inf"):
                raise ConfigError(f"{where}: {key}={getattr(self, key)}: give 0 or more")
        if self.planning is not None:
            self.planning.check(f"{where}: planning")


class Capacity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Tokens that an instance of tp x pp devices keeps: a row of DistServe's csv, or measured."""

    tp: int
    pp: int
    max_num_tokens: int


class HostCost(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the engine's loop takes for a step beside computing it: to schedule, and to take in.

    Attributes:
        step_s: of any step.
        request_s: of each request in it, besides.
    """

    step_s: float
    request_s: float

    def seconds(self, num_reqs: int) -> float:
        """Of a step of so many requests."""
        return self.step_s + self.request_s * num_reqs


class StepsRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """steps.json: what steps of a model cost on a device.

    Attributes:
        fitted: tp -> our fit.
        distserve: tp -> DistServe's; looked at where there is none of ours.
        capacity: of the KV cache, where it is known.
        host: of the engine; None where nobody measured.
        memory_bytes: of a device; 0 where nobody said.
        residuals: of the fits, on points that were not fitted: tp and kind -> figures.
        measured: where the figures come from.
    """

    fitted: dict[int, StepFit] = {}
    distserve: dict[int, DistServeFit] = {}
    capacity: list[Capacity] = []
    host: HostCost | None = None
    memory_bytes: float = 0.0
    residuals: dict[str, dict[str, float]] = {}
    measured: dict[str, str] = {}

    def check(self, where: str) -> None:
        """Raise ConfigError for figures that no device has; curves are checked where they are used."""
        figures = {"memory_bytes": self.memory_bytes}
        figures |= {f"fitted[{tp}].head_layers": fit.head_layers for tp, fit in self.fitted.items()}
        if self.host is not None:
            figures |= {"host.step_s": self.host.step_s, "host.request_s": self.host.request_s}
        for key, value in figures.items():
            if value < 0:
                raise ConfigError(f"{where}: {key}={value}: give 0 or more")
        for row in self.capacity:
            if min(row.tp, row.pp, row.max_num_tokens) < 1:
                raise ConfigError(f"{where}: capacity: {row}: give 1 or more of each")
