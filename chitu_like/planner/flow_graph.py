"""A placement of layers as a flow of tokens: how many a second get through, by which ways, and what limits them.

Source, sink, and an edge for each node as wide as its NICs and its devices allow (Helix, ASPLOS'25). A link
i -> j may be used when s_j <= e_i < e_j, where a node holds the layers [s, e): j runs those from e_i on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from chitu_like.cluster.cost_model import ModelFacts
from chitu_like.cluster.flow import Edge, FlowPath, MaxFlow, decompose, max_flow
from chitu_like.cluster.layer_placement import LayerPlacement
from chitu_like.cluster.topology import SINK, SOURCE, Cluster
from chitu_like.core.errors import CapacityError, ConfigError
from chitu_like.planner.throughput import NodeThroughput

Layers = tuple[int, int]
"""First layer of a node, and the one behind its last; (0, 0) for a node that holds none."""

UNUSED: Layers = (0, 0)
_SOURCE, _SINK = 0, 1  # vertices; node i comes in at 2 + 2i and goes out at 3 + 2i


@dataclass(frozen=True, kw_only=True)
class Hop:
    """A node on the way of a request, and the layers that it runs there."""

    node: str
    layers: range


@dataclass(frozen=True, kw_only=True)
class Route:
    """A way through all layers.

    Attributes:
        hops: in order; their layers are 0 to the last, each once.
        tokens_per_s: that take it.
    """

    hops: tuple[Hop, ...]
    tokens_per_s: float


@dataclass(frozen=True, kw_only=True)
class FlowResult:
    """What a placement lets through, in tokens a second, prompts and answers together.

    Attributes:
        max_flow: from source to sink.
        node_flow: of each node that holds layers.
        node_capacity: what it could take.
        link_flow: (from, to) -> of links that carry any; SOURCE and SINK are ends too.
        routes: that add up to max_flow, the widest first.
        bottleneck: what limits it, in words: nodes, NICs and links.
    """

    max_flow: float
    node_flow: Mapping[str, float]
    node_capacity: Mapping[str, float]
    link_flow: Mapping[tuple[str, str], float]
    routes: tuple[Route, ...]
    bottleneck: tuple[str, ...]


def evaluate(
    cluster: Cluster, model: ModelFacts, throughput: NodeThroughput, placement: LayerPlacement
) -> FlowResult:
    """The maximum flow of a placement; 0 where a layer is held by nobody.

    Raises: ConfigError for nodes that the cluster has not, or another model's layers; CapacityError for
        a node with more layers than it holds.
    """
    graph = FlowGraph(cluster, model, throughput)
    return graph.result(graph.layers_of(placement))


class FlowGraph:
    """The graphs of all placements on one cluster; made once for many of them."""

    def __init__(self, cluster: Cluster, model: ModelFacts, throughput: NodeThroughput) -> None:
        self.cluster = cluster
        self.model = model
        self.throughput = throughput
        self.rates = [throughput.rates(node) for node in cluster.nodes]
        index = {node.name: place for place, node in enumerate(cluster.nodes)}
        token, both = model.token_bytes, model.activation_bytes + model.token_bytes
        self._from_source = [0.0] * len(index)
        self._to_sink = [0.0] * len(index)
        self._links: list[list[tuple[int, float]]] = [[] for _ in index]
        for link in cluster.links:
            if link.source == SOURCE:
                self._from_source[index[link.target]] = link.bandwidth / token
            elif link.target == SINK:
                self._to_sink[index[link.source]] = link.bandwidth / token
            else:
                rate = link.bandwidth / both
                self._links[index[link.source]].append((index[link.target], rate))
        # What a NIC takes when it sees the coordinator alone, and when other nodes talk to it.
        self._nic_in = [(node.nic_in / token, node.nic_in / both) for node in cluster.nodes]
        self._nic_out = [(node.nic_out / token, node.nic_out / both) for node in cluster.nodes]

    def layers_of(self, placement: LayerPlacement) -> list[Layers]:
        """Layers by node, in the order of the cluster; see `evaluate` for what is raised."""
        if placement.num_layers != self.model.num_layers:
            raise ConfigError(
                f"the placement has {placement.num_layers} layers and {self.model.name} "
                f"{self.model.num_layers}: place this model, or name the other"
            )
        for name, layers in placement.held.items():
            if name not in self.cluster.by_name:
                raise ConfigError(f"the placement names node {name}, which the cluster has not")
            most = self.throughput.max_layers(self.cluster.by_name[name])
            if len(layers) > most:
                raise CapacityError(
                    f"node {name} is to hold {len(layers)} layers of {self.model.name} and holds "
                    f"{most} at most: give it fewer"
                )
        held = (placement.held.get(node.name, range(0)) for node in self.cluster.nodes)
        return [(layers.start, layers.stop) for layers in held]

    def placement_of(self, layers: Sequence[Layers]) -> LayerPlacement:
        """The other way around."""
        nodes = zip(self.cluster.nodes, layers, strict=True)
        held = {node.name: range(*ends) for node, ends in nodes if ends != UNUSED}
        return LayerPlacement(self.model.num_layers, held)

    def flow(self, layers: Sequence[Layers]) -> tuple[list[Edge], MaxFlow]:
        """The graph and its maximum flow alone: what a search asks for most often."""
        edges = self.edges(layers)
        return edges, max_flow(self._num_vertices, edges, _SOURCE, _SINK)

    def routes(
        self, layers: Sequence[Layers], edges: Sequence[Edge], flow: MaxFlow
    ) -> tuple[Route, ...]:
        """A flow's routes, the widest first."""
        paths = decompose(self._num_vertices, edges, flow, _SOURCE, _SINK)
        paths.sort(key=lambda path: -path.flow)
        return tuple(self._route(path, layers) for path in paths)

    def result(self, layers: Sequence[Layers]) -> FlowResult:
        """The maximum flow and all about it."""
        edges, flow = self.flow(layers)
        ends = [(self._name(tail), self._name(head)) for tail, head, _ in edges]
        on_edge = list(zip(edges, ends, flow.on_edge, strict=True))
        return FlowResult(
            max_flow=flow.value,
            node_flow={tail: amount for _, (tail, head), amount in on_edge if tail == head},
            node_capacity={tail: edge[2] for edge, (tail, head), _ in on_edge if tail == head},
            link_flow={
                pair: amount for _, pair, amount in on_edge if amount and pair[0] != pair[1]
            },
            routes=self.routes(layers, edges, flow),
            bottleneck=self._bottleneck(layers, edges, flow),
        )

    def edges(self, layers: Sequence[Layers]) -> list[Edge]:
        """Links that may be used, then one edge for each node that holds layers."""
        last = self.model.num_layers
        edges: list[Edge] = []
        hears = [False] * len(layers)  # another node
        talks = [False] * len(layers)  # to another node
        for i, (start, end) in enumerate(layers):
            if end == 0:
                continue
            if start == 0 and self._from_source[i]:
                edges.append((_SOURCE, 2 + 2 * i, self._from_source[i]))
            if end == last:
                if self._to_sink[i]:
                    edges.append((3 + 2 * i, _SINK, self._to_sink[i]))
                continue
            for j, rate in self._links[i]:
                if layers[j][0] <= end < layers[j][1]:
                    edges.append((3 + 2 * i, 2 + 2 * j, rate))
                    talks[i] = hears[j] = True
        for i, (start, end) in enumerate(layers):
            if end:
                limits = self._limits(i, end - start, hears[i], talks[i])
                edges.append((2 + 2 * i, 3 + 2 * i, min(limits)))
        return edges

    @property
    def _num_vertices(self) -> int:
        return 2 + 2 * len(self.rates)

    def _limits(self, i: int, held: int, hears: bool, talks: bool) -> tuple[float, float, float]:
        """Tokens a second of a node: what comes in, is computed, goes out."""
        return self._nic_in[i][hears], self.rates[i][held - 1], self._nic_out[i][talks]

    def _name(self, vertex: int) -> str:
        if vertex == _SOURCE:
            return SOURCE
        return SINK if vertex == _SINK else self.cluster.nodes[vertex // 2 - 1].name

    def _route(self, path: FlowPath, layers: Sequence[Layers]) -> Route:
        hops, done = [], 0
        for vertex in path.vertices[1:-1:2]:
            end = layers[vertex // 2 - 1][1]
            hops.append(Hop(node=self._name(vertex), layers=range(done, end)))
            done = end
        return Route(hops=tuple(hops), tokens_per_s=path.flow)

    def _bottleneck(
        self, layers: Sequence[Layers], edges: Sequence[Edge], flow: MaxFlow
    ) -> tuple[str, ...]:
        if missing := self.placement_of(layers).uncovered():
            return tuple(f"layer {layer}: no node holds it" for layer in missing)
        if not flow.cut:
            return ("the links: none leads on from where the last one ended",)
        hears = {head for tail, head, _ in edges if tail % 2 and head != _SINK}
        talks = {tail for tail, head, _ in edges if tail % 2 and head != _SINK}
        words = []
        for tail, head, capacity in (edges[index] for index in flow.cut):
            name = self._name(tail)
            if name != self._name(head):
                words.append(f"link {name} -> {self._name(head)}")
                continue
            i = tail // 2 - 1
            held = layers[i][1] - layers[i][0]
            limits = self._limits(i, held, tail in hears, head in talks)
            parts = ("NIC in of node", "node", "NIC out of node")
            words.append(f"{parts[limits.index(capacity)]} {name}")
        return tuple(words)


def check_reachable(cluster: Cluster) -> None:
    """Raise ConfigError for a node that no request can come to, or leave again, whatever it holds."""
    for start, toward, advice in (
        (SOURCE, {(link.source, link.target) for link in cluster.links}, "leads to it from"),
        (SINK, {(link.target, link.source) for link in cluster.links}, "leads from it to"),
    ):
        reached = {start}
        while more := {head for tail, head in toward if tail in reached} - reached:
            reached |= more
        for node in cluster.nodes:
            if node.name not in reached:
                raise ConfigError(
                    f"node {node.name} is unreachable: no link {advice} the {start}, not by other "
                    "nodes either: add one, or take the node out of the cluster"
                )
