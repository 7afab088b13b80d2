"""Which nodes a request passes where each holds some layers: a way from source to sink of its own.

A router sees numbers and names alone: no clock, no socket. So what routes a service routes a simulation
too. `maxflow` follows the flow that a plan found (Helix, ASPLOS'25: interleaved weighted round robin over
a node's out-edges, with an estimate of the KV memory that open requests will need); the others are what it
is compared with, and choose the next node only when a prompt has passed the one before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from chitu_like.cluster.topology import SINK, SOURCE
from chitu_like.core.errors import CapacityError, ConfigError
from chitu_like.router.flow_edges import Edge, Ends, NodeLoad, Route, RoutedNode, out_edges
from chitu_like.router.hop_routing import RandomRouter, ShortestQueueRouter, SwarmRouter


@dataclass(frozen=True, kw_only=True)
class KVEstimate:
    """How much KV memory a request is thought to need until it ends.

    Attributes:
        expected_output: tokens of an answer, in the mean.
        output_ratio: how much of that is reserved: answers are not all at their end at once.
        high_water: share of a node's memory that reservations may fill.
        feed_mark: share of the fullest layer up to which an offline feeder sends more.
    """

    expected_output: float
    output_ratio: float = 1.0
    high_water: float = 0.85
    feed_mark: float = 0.8

    @classmethod
    def offline(cls, expected_output: float) -> KVEstimate:
        """Where nobody waits for an answer: what fits for sure."""
        return cls(expected_output=expected_output)

    @classmethod
    def online(cls, expected_output: float) -> KVEstimate:
        """Where requests come and go all the time."""
        return cls(expected_output=expected_output, output_ratio=0.6, high_water=0.9)

    def tokens(self, num_input: int) -> float:
        """What is reserved in each layer for a prompt of so many tokens."""
        return num_input + self.expected_output * self.output_ratio


class FlowRouter(Protocol):
    """Finds each request's nodes, and remembers what is open."""

    def begin(self, num_input: int) -> Route | None:
        """A way for a prompt of so many tokens, or at least its first node; None: not now.

        Raises: CapacityError if it would be refused even with nothing else open.
        """
        ...

    def extend(self, route: Route) -> None:
        """Decide the next node, now that the prompt has passed the last one decided."""
        ...

    def decoded(self, route: Route) -> None:
        """One more token goes the way."""
        ...

    def end(self, route: Route) -> None:
        """The request is over, whether it is answered or was aborted."""
        ...

    def has_room(self) -> bool:
        """Whether an offline feeder should send more."""
        ...


class MaxFlowRouter:
    """Interleaved weighted round robin over the edges of a flow.

    A prompt's whole way is decided when it comes. At each node it takes the edge with the least
    load + tokens / flow among those whose target has room; a decode adds its token to the same edges.

    Args:
        nodes: those that hold layers.
        flow: tokens/s of each edge; edges without any, or with less than `min_share` of what leaves
            their source, are not used.
        kv: the estimate.

    Raises: ConfigError for a flow that does not lead from SOURCE to SINK.
    """

    def __init__(
        self,
        nodes: Mapping[str, RoutedNode],
        flow: Mapping[Ends, float],
        *,
        kv: KVEstimate,
        min_share: float = 0.05,
    ) -> None:
        self._nodes = nodes
        self._kv = kv
        self._edges = out_edges(nodes, _main_edges(flow, min_share))
        self._room = {
            name: kv.high_water * node.kv_tokens * len(node.layers) for name, node in nodes.items()
        }
        self._reserved = dict.fromkeys(nodes, 0.0)  # name -> tokens x layers
        self._num_open = 0
        self._open_tokens = 0.0
        used = {name: nodes[name] for name in self._edges if name != SOURCE}
        self._layer_tokens = min(_layer_tokens(used).values())

    def begin(self, num_input: int) -> Route | None:
        """See FlowRouter. A walk that fails leaves no trace."""
        tokens = self._kv.tokens(num_input)
        edges: list[Edge] = []
        at = SOURCE
        while at != SINK:
            edge = self._next_edge(at, num_input, tokens)
            if edge is None:
                if not self._num_open:
                    raise CapacityError(
                        f"a prompt of {num_input} tokens, and what its answer may take, fits no way "
                        f"behind {at} even when nothing else is open: batches there take fewer prompt "
                        f"tokens, or {self._kv.high_water} of the nodes' KV memory is too little"
                    )
                return None
            edges.append(edge)
            at = edge.ends[1]
        # No node is passed twice, so loads may be added behind the walk as well as on it.
        for edge in edges:
            edge.load += num_input * edge.token_cost
        self._reserve(edges, tokens)
        self._num_open += 1
        return Route(num_input, edges, tokens)

    def extend(self, route: Route) -> None:
        """Nothing is left to decide."""
        assert route.is_whole

    def decoded(self, route: Route) -> None:
        """See FlowRouter."""
        for edge in route.edges:
            edge.load += edge.token_cost

    def end(self, route: Route) -> None:
        """See FlowRouter."""
        self._num_open -= 1
        self._reserve(route.edges, -route.reserved)
        if not self._num_open:  # what rounding left
            self._reserved = dict.fromkeys(self._nodes, 0.0)
            self._open_tokens = 0.0

    def has_room(self) -> bool:
        """By the fullest layer: each request is once in every layer, so it is the one with least room."""
        return self._open_tokens <= self._kv.feed_mark * self._layer_tokens

    def reserved_share(self, node: str) -> float:
        """How much of a node's KV memory open requests are thought to need."""
        return self._reserved[node] / self._room[node] * self._kv.high_water

    def _next_edge(self, at: str, num_input: int, tokens: float) -> Edge | None:
        chosen, least = None, float("inf")
        for edge in self._edges[at]:
            load = edge.load + num_input * edge.token_cost
            if load < least and self._takes(edge, num_input, tokens):
                chosen, least = edge, load
        return chosen

    def _takes(self, edge: Edge, num_input: int, tokens: float) -> bool:
        """Whether the prompt fits in a batch of the edge's target, and its KV in the room there."""
        name = edge.ends[1]
        if name == SINK:
            return True
        if num_input > self._nodes[name].max_prompt_tokens:
            return False
        return self._reserved[name] + tokens * edge.num_layers <= self._room[name]

    def _reserve(self, edges: Sequence[Edge], tokens: float) -> None:
        self._open_tokens += tokens
        for edge in edges[:-1]:  # the last leads to the sink
            self._reserved[edge.ends[1]] += tokens * edge.num_layers


ROUTER_NAMES = ("maxflow", "swarm", "random", "shortest_queue")


def make_flow_router(
    name: str,
    nodes: Mapping[str, RoutedNode],
    edges: Mapping[Ends, float],
    *,
    load_of: Callable[[str], NodeLoad],
    kv: KVEstimate,
    seed: int = 0,
) -> FlowRouter:
    """The router called `name`, one of ROUTER_NAMES.

    Args:
        name: as users write it.
        nodes: those that hold layers.
        edges: for maxflow its flow in tokens/s; for the others whatever a request may pass.
        load_of: what a node reports now; maxflow does not ask.
        kv: maxflow's estimate.
        seed: of what is drawn by lot.

    Raises: ConfigError if there is none, or the edges lead nowhere.
    """
    if name == "maxflow":
        return MaxFlowRouter(nodes, edges, kv=kv)
    others = {"swarm": SwarmRouter, "random": RandomRouter, "shortest_queue": ShortestQueueRouter}
    if name not in others:
        raise ConfigError(f"simulate.router={name}: use one of {', '.join(ROUTER_NAMES)}")
    return others[name](nodes, edges, load_of=load_of, seed=seed)


def _main_edges(flow: Mapping[Ends, float], min_share: float) -> dict[Ends, float]:
    """Edges that carry a share worth it of what leaves their source; all of them where none does."""
    leaving: dict[str, list[float]] = {}
    for (source, _), rate in flow.items():
        leaving.setdefault(source, []).append(rate)
    least = {source: min_share * sum(rates) for source, rates in leaving.items()}
    return {
        ends: rate
        for ends, rate in flow.items()
        if rate > 0 and (rate >= least[ends[0]] or max(leaving[ends[0]]) < least[ends[0]])
    }


def _layer_tokens(nodes: Mapping[str, RoutedNode]) -> dict[int, int]:
    """Tokens whose KV fits in each layer, over all nodes that hold it."""
    tokens: dict[int, int] = {}
    for node in nodes.values():
        for layer in node.layers:
            tokens[layer] = tokens.get(layer, 0) + node.kv_tokens
    return tokens
