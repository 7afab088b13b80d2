"""A placement, and what was promised of it: the record that planning leaves behind, and its file.

The file is a layer placement (cluster/layer_placement_file.py) with more keys beside it:

    num_layers: 80
    layers: {compute_node_2: 0-11, ...}
    model: llama2_70b
    method: local_search
    figures: {max_compute_throughput: 2803.9, max_flow: 1212.2, ...}
    bottleneck: [node A100-1]
    link_flow:                    # tokens a second, by where they come from
      source: {compute_node_2: 1212.2}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from chitu_like.cluster.cost_model import ModelFacts
from chitu_like.cluster.layer_placement import LayerPlacement
from chitu_like.cluster.layer_placement_file import placement_from, placement_values
from chitu_like.cluster.record import Plain, Record, write_yaml
from chitu_like.cluster.topology import Cluster
from chitu_like.cluster.units import SECONDS, Units
from chitu_like.core.errors import CapacityError, ConfigError
from chitu_like.planner.flow_graph import FlowResult, evaluate
from chitu_like.planner.score import Scorer
from chitu_like.planner.throughput import NodeThroughput

TOLERANCE = 1e-6
"""Share by which a flow may differ when it is computed again, elsewhere."""
_RATE: Units = MappingProxyType({"tokens/s": 1.0})
FIGURES: Mapping[str, Units] = MappingProxyType(
    {
        "max_compute_throughput": _RATE,
        "max_flow": _RATE,
        "tokens_per_s": _RATE,
        "prompt_latency_s": SECONDS,
        "decode_latency_s": SECONDS,
    }
)
"""In the file, with the units that they may be written in."""


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """What is planned.

    Attributes:
        placement: who holds what.
        model: its name.
        method: how it was found.
        max_compute_throughput: tokens a second that no placement exceeds.
        max_flow: tokens a second that this one lets through.
        tokens_per_s: that it serves, by flow and Little's law.
        prompt_latency_s: from a request to its first token, then; as true as score.py says.
        decode_latency_s: from a token to the next.
        bottleneck: what limits the flow, in words.
        link_flow: (from, to) -> tokens a second.
    """

    placement: LayerPlacement
    model: str
    method: str
    max_compute_throughput: float
    max_flow: float
    tokens_per_s: float
    prompt_latency_s: float
    decode_latency_s: float
    bottleneck: tuple[str, ...]
    link_flow: Mapping[tuple[str, str], float]

    @classmethod
    def of(
        cls,
        cluster: Cluster,
        model: ModelFacts,
        throughput: NodeThroughput,
        placement: LayerPlacement,
        *,
        method: str,
    ) -> LayerPlan:
        """Evaluate a placement and write down what comes of it.

        Raises: ConfigError and CapacityError as `evaluate`.
        """
        flow = evaluate(cluster, model, throughput, placement)
        score = Scorer(cluster, throughput).score(flow, placement.held)
        return cls(
            placement=placement,
            model=model.name,
            method=method,
            max_compute_throughput=throughput.compute_bound(cluster),
            max_flow=flow.max_flow,
            tokens_per_s=score.tokens_per_s,
            prompt_latency_s=score.prompt_latency_s,
            decode_latency_s=score.decode_latency_s,
            bottleneck=flow.bottleneck,
            link_flow=flow.link_flow,
        )

    def verify(self, cluster: Cluster, model: ModelFacts, throughput: NodeThroughput) -> FlowResult:
        """Compute anew that nodes hold their layers, every layer is held, and tokens flow as promised.

        Returns: the flow.

        Raises: CapacityError for a node with too many layers or layers that nobody holds; ConfigError for a plan of
            another model, of other nodes, or with another flow.
        """
        if self.model != model.name:
            raise ConfigError(f"the plan is of {self.model}, not of {model.name}: plan anew")
        flow = evaluate(cluster, model, throughput, self.placement)
        if missing := self.placement.uncovered():
            shown = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
            raise CapacityError(f"no node holds the layers {shown}: give them to one, or plan anew")
        if flow.max_flow <= 0:
            raise CapacityError(f"the plan serves nothing: {', '.join(flow.bottleneck)}")
        if abs(flow.max_flow - self.max_flow) > TOLERANCE * self.max_flow:
            raise ConfigError(
                f"the plan promises max_flow={self.max_flow:.6g} and this cluster and profile give "
                f"{flow.max_flow:.6g}: plan anew, or name the cluster and profile it was made for"
            )
        return flow

    def write(self, path: Path, comment: str = "") -> None:
        """Write a file that `read` reads back as the same."""
        by_source: dict[str, Plain] = {}
        for source in dict.fromkeys(source for source, _ in self.link_flow):
            by_source[source] = {
                target: rate for (start, target), rate in self.link_flow.items() if start == source
            }
        values: dict[str, Plain] = {
            **placement_values(self.placement),
            "model": self.model,
            "method": self.method,
            "figures": {name: getattr(self, name) for name in FIGURES},
            "bottleneck": list(self.bottleneck),
            "link_flow": by_source,
        }
        write_yaml(path, values, comment)

    @classmethod
    def read(cls, path: Path) -> LayerPlan:
        """Read a plan.

        Raises: ConfigError naming file and key.
        """
        record = Record.read(path)
        record.only("num_layers", "layers", "model", "method", "figures", "bottleneck", "link_flow")
        figures, flows = record.record("figures"), record.record("link_flow")
        figures.only(*FIGURES)
        link_flow = {}
        for source in flows.keys():  # noqa: SIM118 no dict
            targets = flows.record(source)
            for target in targets.keys():  # noqa: SIM118 no dict
                link_flow[source, target] = targets.quantity(target, _RATE)
        return cls(
            placement=placement_from(record),
            model=record.text("model"),
            method=record.text("method"),
            bottleneck=tuple(record.texts("bottleneck")),
            link_flow=link_flow,
            **{name: figures.quantity(name, units) for name, units in FIGURES.items()},
        )
