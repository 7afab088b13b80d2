"""How many tokens a second a node takes with so many layers (Helix, ASPLOS'25, arXiv:2406.01566).

How large a node's batches are depends on how long requests spend elsewhere, hence on the speed of all other
nodes, which depends on their batches: a fixed point. Tokens of prompts and of answers count alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from chitu_like.cluster.cost_model import LayerTimes, ModelFacts
from chitu_like.cluster.topology import Cluster, Node
from chitu_like.core.errors import CapacityError, ConfigError

_Figure = TypeVar("_Figure", int, float)

ROUNDS = 10
"""Of the fixed point; what ten leave open is far below what tables are measured to."""
SPARE_LAYERS = 1.2
"""Where typical nodes would not hold the model so many times, they hold more than is typical."""


@dataclass(frozen=True, kw_only=True)
class TypicalLoad:
    """What is served, and rough figures of the devices to begin with.

    Devices match without regard to case, as in profiles. One without a figure gets one: 2/3 of the layers it holds at most as typical, all of them in a
    small cluster, and the speed that one prompt and its answer have on it alone.

    Attributes:
        mean_input: prompt tokens of a request.
        mean_output: tokens of its answer.
        kv_share: of the KV capacity, which requests fill on the average.
        weight_share: of a node's memory, that weights may take at most.
        typical_layers: device -> layers.
        typical_layers_small: the same in clusters that hold the model barely more than once.
        start_speed: device -> tokens x layers a second, the first guess.
    """

    mean_input: float = 750.0
    mean_output: float = 240.0
    kv_share: float = 0.3
    weight_share: float = 0.5
    typical_layers: Mapping[str, int] = field(default_factory=dict)
    typical_layers_small: Mapping[str, int] = field(default_factory=dict)
    start_speed: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, low in (("mean_input", 1), ("mean_output", 1)):
            if not low <= getattr(self, name) < 1e9:
                raise ConfigError(f"{name}={getattr(self, name)}: give at least {low} token")
        for name in ("kv_share", "weight_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)}: give a share above 0, at most 1")
        for figures in (self.typical_layers, self.typical_layers_small, self.start_speed):
            for device, figure in figures.items():
                if not figure > 0:
                    raise ConfigError(f"device {device}: {figure} typical layers, or that speed")

    @property
    def tokens(self) -> float:
        """Of a request, prompt and answer."""
        return self.mean_input + self.mean_output


@dataclass(frozen=True, kw_only=True)
class NodeThroughput:
    """Tokens a second of each device by the number of layers it holds; what else planning asks of it.

    Attributes:
        model: what is placed.
        load: what is served.
        layer_times: device -> times of a layer.
        tokens_per_s: device -> of 1, 2, ... layers.
    """

    model: ModelFacts
    load: TypicalLoad
    layer_times: Mapping[str, LayerTimes]
    tokens_per_s: Mapping[str, tuple[float, ...]]

    def of(self, device: str, num_layers: int) -> float:
        """Tokens a second of a device that holds so many layers."""
        return self.tokens_per_s[device][num_layers - 1]

    def max_layers(self, node: Node) -> int:
        """Layers that a node holds at most, by its profile and by its own memory; 0 where none fits."""
        # A memory of just so many layers holds them, whichever way the division rounds.
        fit = self.load.weight_share * node.memory_bytes / self.model.layer_bytes * (1 + 1e-9)
        return int(min(fit, len(self.tokens_per_s[node.device])))

    def rates(self, node: Node) -> tuple[float, ...]:
        """Tokens a second of a node with 1, 2, ... as many layers as it holds."""
        return self.tokens_per_s[node.device][: self.max_layers(node)]

    def compute_bound(self, cluster: Cluster) -> float:
        """Tokens a second that no placement exceeds, were there no network."""
        best = (
            max((k * rate for k, rate in enumerate(self.rates(node), start=1)), default=0.0)
            for node in cluster.nodes
        )
        return sum(best) / self.model.num_layers

    def check_fits(self, cluster: Cluster) -> None:
        """Raise CapacityError for a cluster that does not hold every layer once."""
        room = sum(self.max_layers(node) for node in cluster.nodes)
        if room >= self.model.num_layers:
            return
        most: dict[str, int] = {}
        for node in cluster.nodes:
            most[node.device] = max(most.get(node.device, 0), self.max_layers(node))
        kinds = Counter(node.device for node in cluster.nodes)
        held = ", ".join(f"{kinds[device]} {device} x {most[device]}" for device in kinds)
        raise CapacityError(
            f"{self.model.name} has {self.model.num_layers} layers and the cluster holds {room} "
            f"({held}): add nodes, or memory, or let weights take more than "
            f"{self.load.weight_share:.0%} of it"
        )


def node_throughput(
    cluster: Cluster, model: ModelFacts, layer_times: Mapping[str, LayerTimes], load: TypicalLoad
) -> NodeThroughput:
    """Find the fixed point for the devices of a cluster.

    Raises: ConfigError for a device without times; CapacityError for a cluster that the model does not
        fit.
    """
    counts = Counter(node.device for node in cluster.nodes)
    for node in cluster.nodes:
        if node.device not in layer_times:
            known = ", ".join(sorted(layer_times)) or "none"
            raise ConfigError(
                f"node {node.name}: the profile has no times of {model.name} on {node.device}, only "
                f"on {known}: measure it, or name another device"
            )
    point = _FixedPoint(
        num_layers=model.num_layers,
        load=load,
        counts={device: n for device, n in counts.items() if layer_times[device].max_layers > 0},
        layer_times={device: layer_times[device] for device in counts},
    )
    speed = point.start_speed
    for _ in range(ROUNDS):
        speed = point.improve(speed)
    found = NodeThroughput(
        model=model,
        load=load,
        layer_times=point.layer_times,
        tokens_per_s={
            device: tuple(point.rate(device, k + 1, speed) for k in range(point.most(device)))
            for device in counts
        },
    )
    found.check_fits(cluster)
    return found


@dataclass(frozen=True, kw_only=True)
class _FixedPoint:
    """Speeds (tokens x layers a second of each device) that follow from themselves.

    Attributes:
        num_layers: of the model.
        load: what is served.
        counts: nodes of each device that holds a layer at all.
        layer_times: device -> times of a layer.
    """

    num_layers: int
    load: TypicalLoad
    counts: Mapping[str, int]
    layer_times: Mapping[str, LayerTimes]

    def most(self, device: str) -> int:
        """Layers that a device holds at most."""
        return min(self.layer_times[device].max_layers, self.num_layers)

    @cached_property
    def typical(self) -> Mapping[str, int]:
        """Layers that a device holds typically."""
        usual = {
            device: min(
                _of(self.load.typical_layers, device) or max(1, round(2 / 3 * self.most(device))),
                self.most(device),
            )
            for device in self.counts
        }
        if self.held(usual) >= SPARE_LAYERS * self.num_layers:
            return usual
        return {
            device: min(
                _of(self.load.typical_layers_small, device) or self.most(device), self.most(device)
            )
            for device in self.counts
        }

    def held(self, layers: Mapping[str, int]) -> int:
        """Layers of all nodes together."""
        return sum(count * layers[device] for device, count in self.counts.items())

    @property
    def start_speed(self) -> Mapping[str, float]:
        """The first guess."""
        return {
            device: _of(self.load.start_speed, device) or self._speed_alone(device)
            for device in self.counts
        }

    def _speed_alone(self, device: str) -> float:
        times, load = self.layer_times[device], self.load
        alone = times.prompt_s(load.mean_input) + load.mean_output * times.decode_s(1)
        return load.tokens / alone

    def improve(self, speed: Mapping[str, float]) -> Mapping[str, float]:
        """The speeds that follow from these.

        Raises: CapacityError where a node's KV cache is too small for a single request.
        """
        better = {}
        for device, typical in self.typical.items():
            better[device] = self.rate(device, typical, speed) * typical
            if not better[device] > 0:
                raise CapacityError(
                    f"{device} with {typical} layers has KV cache for "
                    f"{self.layer_times[device].kv_tokens(typical)} tokens, too few for requests of "
                    f"{self.load.tokens:g}: take it out of the cluster, or expect shorter ones"
                )
        return better

    def rate(self, device: str, num_layers: int, speed: Mapping[str, float]) -> float:
        """Tokens a second of a device with so many layers among nodes of these speeds.

        A round is the way of a token through all layers. In a steady state one request in
        `mean_output` rounds begins for each that is decoded.
        """
        load, times = self.load, self.layer_times[device]
        if times.kv_tokens(num_layers) < load.tokens:
            return 0.0
        entries = int(load.kv_share * times.kv_tokens(num_layers))
        decodes = entries / load.tokens * self._share(device, num_layers, speed)
        prompts = decodes / load.mean_output
        if prompts > 1:  # times are linear by then: one prompt stands for several
            prompts, prompt_tokens, decode_tokens = 1.0, load.mean_input, load.mean_output
        else:
            prompt_tokens = round(prompts * load.mean_input)
            decode_tokens = round(decodes)
        if prompt_tokens == decode_tokens == 0:  # a request is mostly alone
            return self._speed_alone(device) / num_layers
        # Less than a prompt a round: one prompt, and the decodes of as many rounds as it takes.
        rounds = 1 / prompts
        seconds = (
            times.prompt_s(int(prompt_tokens * rounds)) + times.decode_s(decode_tokens) * rounds
        )
        return (prompt_tokens + decode_tokens) * rounds / (num_layers * seconds)

    def _share(self, device: str, num_layers: int, speed: Mapping[str, float]) -> float:
        """Of the time of a round, what is spent on this node."""
        total = sum(
            count * self.typical[other] / speed[other] for other, count in self.counts.items()
        )
        elsewhere = (self.num_layers - num_layers) * total / self.held(self.typical)
        here = num_layers / speed[device]
        return here / (elsewhere + here)


def _of(figures: Mapping[str, _Figure], device: str) -> _Figure | None:
    """The figure of a device, however it is spelled."""
    return next((figures[name] for name in figures if name.lower() == device.lower()), None)
