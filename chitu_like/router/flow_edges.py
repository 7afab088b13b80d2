"""Ways between nodes that hold some layers each: which edges a request may pass, and the way it took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from chitu_like.cluster.topology import SINK, SOURCE
from chitu_like.core.errors import ConfigError

Ends = tuple[str, str]
"""Source and target of a link."""


class NodeLoad(Protocol):
    """What a node reports of itself when somebody asks."""

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a batch, prompts and decodes."""
        ...

    @property
    def num_waiting_tokens(self) -> int:
        """Tokens of all of them: a prompt's all, a decode's one."""
        ...


@dataclass(frozen=True, kw_only=True)
class RoutedNode:
    """What is known of a node beforehand.

    Attributes:
        layers: that it holds.
        kv_tokens: whose keys and values fit, in each of these layers.
        max_prompt_tokens: of one batch; longer prompts cannot go there.
        tokens_per_s: of full batches of decodes, through all of its layers.
    """

    layers: range
    kv_tokens: int
    max_prompt_tokens: float
    tokens_per_s: float


class Edge:
    """A way from one node to the next.

    Attributes:
        ends: its source and target.
        num_layers: that the target runs of what comes along here; 0 for the sink.
        token_cost: what a token adds to the load: 1 / flow.
        load: of the interleaved weighted round robin.
    """

    __slots__ = ("ends", "load", "num_layers", "token_cost")

    def __init__(self, ends: Ends, num_layers: int, token_cost: float) -> None:
        self.ends = ends
        self.num_layers = num_layers
        self.token_cost = token_cost
        self.load = 0.0


@dataclass(slots=True)
class Route:
    """A request's way: its prompt goes it once, then each of its decodes.

    Attributes:
        num_input: tokens of the prompt.
        edges: from SOURCE on, up to SINK or as far as is decided.
        reserved: tokens in each layer, of the KV estimate.
    """

    num_input: int
    edges: list[Edge] = field(default_factory=list)
    reserved: float = 0.0

    @property
    def is_whole(self) -> bool:
        """Whether it ends at the sink."""
        return bool(self.edges) and self.edges[-1].ends[1] == SINK


def may_pass(held: Mapping[str, range], ends: Ends, num_layers: int) -> bool:
    """Whether a request that has passed the source may go on at the target, which has layers for it."""
    source, target = ends
    if (source != SOURCE and source not in held) or (target != SINK and target not in held):
        return False
    done = 0 if source == SOURCE else held[source].stop
    if target == SINK:
        return done == num_layers
    return held[target].start <= done < held[target].stop


def out_edges(
    nodes: Mapping[str, RoutedNode], edges: Mapping[Ends, float]
) -> dict[str, list[Edge]]:
    """Edges that lie on some way from SOURCE to SINK, by their source, in the order given.

    Raises: ConfigError for an edge that no request can pass, or if there is no way.
    """
    num_layers = max(node.layers.stop for node in nodes.values())
    out: dict[str, list[Edge]] = {SOURCE: [], **{name: [] for name in nodes}}
    for ends, flow in edges.items():
        edge = Edge(ends, _layers_run(nodes, ends, num_layers), 1 / flow if flow > 0 else 0.0)
        out[ends[0]].append(edge)
    # Layers rise along every edge, so one look at each node, from the last on, is enough.
    rising = [SOURCE, *sorted(nodes, key=lambda name: nodes[name].layers.stop)]
    leads_on = {SINK}
    for name in reversed(rising):
        out[name] = [edge for edge in out[name] if edge.ends[1] in leads_on]
        if out[name]:
            leads_on.add(name)
    if SOURCE not in leads_on:
        raise ConfigError(
            f"no way leads through all {num_layers} layers: no links from {SOURCE} to {SINK} connect "
            "nodes whose layers follow each other"
        )
    reached = {SOURCE}
    for name in rising:
        if name in reached:
            reached.update(edge.ends[1] for edge in out[name])
    return {name: out[name] for name in rising if name in reached}


def _layers_run(nodes: Mapping[str, RoutedNode], ends: Ends, num_layers: int) -> int:
    """How many layers the target of an edge runs."""
    held = {name: nodes[name].layers for name in ends if name in nodes}
    if not may_pass(held, ends, num_layers):
        raise ConfigError(f"flow {ends[0]} -> {ends[1]}: the layers there do not follow each other")
    source, target = ends
    if target == SINK:
        return 0
    return held[target].stop - (0 if source == SOURCE else held[source].stop)
