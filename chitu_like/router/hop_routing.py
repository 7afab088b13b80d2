"""Routers that flow routing is compared with: the next node is chosen when a prompt has passed the last."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from chitu_like.cluster.topology import SINK, SOURCE
from chitu_like.router.flow_edges import Edge, Ends, NodeLoad, Route, RoutedNode, out_edges


class HopByHopRouter:
    """Chooses the next node where the prompt is, and counts what is open.

    Args:
        nodes, edges, load_of: as for MaxFlowRouter; how much flows does not matter.
        seed: of what is drawn by lot.
        max_open: requests at once, since nothing estimates their KV memory.
    """

    def __init__(
        self,
        nodes: Mapping[str, RoutedNode],
        edges: Mapping[Ends, float],
        *,
        load_of: Callable[[str], NodeLoad],
        seed: int = 0,
        max_open: int = 240,
    ) -> None:
        self._nodes = nodes
        self._load_of = load_of
        self._edges = out_edges(nodes, edges)
        self._chance = random.Random(seed)
        self._max_open = max_open
        self._num_open = 0

    def begin(self, num_input: int) -> Route | None:
        """See FlowRouter."""
        if not self.has_room():
            return None
        self._num_open += 1
        return Route(num_input, [self._choose(self._edges[SOURCE], num_input)])

    def extend(self, route: Route) -> None:
        """See FlowRouter."""
        at = route.edges[-1].ends[1]
        route.edges.append(self._choose(self._edges[at], route.num_input))

    def decoded(self, route: Route) -> None:
        """Nothing depends on it."""

    def end(self, route: Route) -> None:
        """See FlowRouter."""
        self._num_open -= 1

    def has_room(self) -> bool:
        """See FlowRouter."""
        return self._num_open < self._max_open

    def _choose(self, edges: Sequence[Edge], num_tokens: int) -> Edge:
        """One of at least one."""
        raise NotImplementedError

    def _least(self, edges: Sequence[Edge], cost: Callable[[str], float]) -> Edge:
        """The one that costs least, by lot among equals; the sink is where nothing is left to do."""
        if edges[0].ends[1] == SINK:
            return edges[0]
        costs = [cost(edge.ends[1]) for edge in edges]
        least = min(costs)
        return self._chance.choice(
            [edge for edge, of_it in zip(edges, costs, strict=True) if of_it == least]
        )


class RandomRouter(HopByHopRouter):
    """Any next node, each as likely as the others."""

    def _choose(self, edges: Sequence[Edge], num_tokens: int) -> Edge:
        return self._chance.choice(edges)


class ShortestQueueRouter(HopByHopRouter):
    """Where fewest requests wait."""

    def _choose(self, edges: Sequence[Edge], num_tokens: int) -> Edge:
        return self._least(edges, lambda name: self._load_of(name).num_waiting)


class SwarmRouter(HopByHopRouter):
    """Where what waits and the prompt itself are done first (SWARM, Ryabinin et al. 2023)."""

    def _choose(self, edges: Sequence[Edge], num_tokens: int) -> Edge:
        def seconds(name: str) -> float:
            waiting = self._load_of(name).num_waiting_tokens
            return (waiting + num_tokens) / self._nodes[name].tokens_per_s

        return self._least(edges, seconds)
