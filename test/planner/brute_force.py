"""What the planner is held against: nothing here is clever, and nothing is taken from it.

Three ways to the flow of a placement: networkx, every cut, and a linear program over every route. And
the best flow of all placements, by looking at all of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from functools import reduce

import networkx
import numpy as np
from planner.toy_clusters import Toy

from chitu_like.cluster.topology import SINK, SOURCE

Held = Mapping[str, range]
Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def link_tokens(toy: Toy, source: str, target: str) -> float:
    """Tokens a second over a link; 0 where there is none."""
    link = toy.cluster.link_between.get((source, target))
    if link is None:
        return 0.0
    outer = source == SOURCE or target == SINK
    return link.bandwidth / (toy.model.token_bytes + (0 if outer else toy.model.activation_bytes))


def node_tokens(
    toy: Toy, name: str, num_layers: int, *, hears: bool = True, talks: bool = True
) -> tuple[float, float, float]:
    """Tokens a second into a node that holds so many layers, through it, and out of it.

    hears, talks: whether another node sends it tokens, or gets some; the coordinator alone needs no
    activations.
    """
    node, model = toy.cluster.by_name[name], toy.model
    size_in = model.token_bytes + hears * model.activation_bytes
    size_out = model.token_bytes + talks * model.activation_bytes
    return node.nic_in / size_in, toy.speed[node.device, num_layers], node.nic_out / size_out


def may_follow(before: range, after: range, *, partial: bool = True) -> bool:
    """Whether requests go on from one node to the other."""
    if not before or not after:
        return False
    if partial:
        return after.start <= before.stop < after.stop
    return after.start == before.stop


def peers(toy: Toy, held: Held, name: str) -> tuple[bool, bool]:
    """Whether other nodes may send to a node under a placement, and whether it may send to others."""
    others = [other for other in held if other != name]
    return (
        any(link_tokens(toy, x, name) and may_follow(held[x], held[name]) for x in others),
        any(link_tokens(toy, name, x) and may_follow(held[name], held[x]) for x in others),
    )


def networkx_graph(toy: Toy, held: Held) -> networkx.DiGraph[str]:
    """Four vertices a node, as PLANNING section 3 draws them."""
    graph: networkx.DiGraph[str] = networkx.DiGraph()
    graph.add_nodes_from([SOURCE, SINK])
    for name, layers in held.items():
        chain = [f"{name}/{part}" for part in ("in", "start", "end", "out")]
        hears, talks = peers(toy, held, name)
        rates = node_tokens(toy, name, len(layers), hears=hears, talks=talks)
        for a, b, rate in zip(chain, chain[1:], rates, strict=False):
            graph.add_edge(a, b, capacity=rate)
        if layers.start == 0:
            graph.add_edge(SOURCE, chain[0], capacity=link_tokens(toy, SOURCE, name))
        if layers.stop == toy.model.num_layers:
            graph.add_edge(chain[-1], SINK, capacity=link_tokens(toy, name, SINK))
        for other, next_layers in held.items():
            rate = link_tokens(toy, name, other)
            if other != name and rate and may_follow(layers, next_layers):
                graph.add_edge(chain[-1], f"{other}/in", capacity=rate)
    return graph


def networkx_flow(toy: Toy, held: Held) -> float:
    return float(networkx.maximum_flow_value(networkx_graph(toy, held), SOURCE, SINK))


def all_routes(toy: Toy, held: Held) -> Iterator[tuple[str, ...]]:
    """Every way of a request from layer 0 to the last."""

    def extend(route: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        done = held[route[-1]]
        if done.stop == toy.model.num_layers and link_tokens(toy, route[-1], SINK):
            yield route
        for name, layers in held.items():
            if may_follow(done, layers) and link_tokens(toy, route[-1], name):
                yield from extend((*route, name))

    for name, layers in held.items():
        if layers.start == 0 and link_tokens(toy, SOURCE, name):
            yield from extend((name,))


def route_flow(toy: Toy, held: Held) -> float:
    """The most that all routes carry together, each counted at every node and link it passes."""
    import highspy

    users: dict[tuple[str, str], list[int]] = {}
    for index, route in enumerate(all_routes(toy, held)):
        stops = [SOURCE, *route, SINK]
        for passed in (*itertools.pairwise(stops), *((n, n) for n in route)):
            users.setdefault(passed, []).append(index)
    solver = highspy.Highs()
    solver.silent()
    num_routes = 1 + max((index for found in users.values() for index in found), default=-1)
    for _ in range(num_routes):
        solver.addCol(-1.0, 0.0, highspy.kHighsInf, 0, [], [])
    for (a, b), indices in users.items():
        rate = link_tokens(toy, a, b)
        if a == b:
            hears, talks = peers(toy, held, a)
            rate = min(node_tokens(toy, a, len(held[a]), hears=hears, talks=talks))
        solver.addRow(0.0, rate, len(indices), indices, [1.0] * len(indices))
    solver.run()
    return -float(solver.getInfo().objective_function_value)


def cut_flow(toy: Toy, held: Held) -> float:
    """The cheapest of all cuts."""
    names = list(held)
    table = _Table(toy, [[held[name]] for name in names], names, partial=True)
    return float(table.flows(np.zeros((1, len(names)), dtype=np.int64))[0])


def best_flow(toy: Toy, *, partial: bool = True) -> tuple[float, dict[str, range]]:
    """The most tokens a second of all placements, and one that serves them.

    No placement is passed over whose bound could beat the best: no more tokens come through a layer
    than all who hold it compute.
    """
    names = [node.name for node in toy.cluster.nodes]
    choices = [_ranges(toy, name) for name in names]
    table = _Table(toy, choices, names, partial=partial)
    bound = table.layer_bounds().ravel()
    shape = [len(found) for found in choices]
    best, best_at = -1.0, 0
    order = np.argsort(-bound, kind="stable")
    for chunk in np.array_split(order, math.ceil(len(order) / 2048)):
        if bound[chunk[0]] <= best:
            break
        flows = table.flows(np.stack(np.unravel_index(chunk, shape), axis=1))
        at = int(flows.argmax())
        if flows[at] > best:
            best, best_at = float(flows[at]), int(chunk[at])
    picked = np.unravel_index(best_at, shape)
    ranges = (found[int(index)] for found, index in zip(choices, picked, strict=True))
    return best, {name: layers for name, layers in zip(names, ranges, strict=True) if layers}


def all_placements(toy: Toy) -> Iterator[dict[str, range]]:
    """Every placement, also those that leave nodes out."""
    names = [node.name for node in toy.cluster.nodes]
    for ranges in itertools.product(*(_ranges(toy, name) for name in names)):
        yield {name: layers for name, layers in zip(names, ranges, strict=True) if len(layers)}


def _ranges(toy: Toy, name: str) -> list[range]:
    num_layers = toy.model.num_layers
    return [range(0)] + [
        range(start, start + k)
        for k in range(1, num_layers + 1)
        if toy.node_speed(name, k) is not None
        for start in range(num_layers - k + 1)
    ]


class _Table:
    """Capacities for every choice of layers of every node, so that cuts of many placements add up."""

    def __init__(
        self, toy: Toy, choices: list[list[range]], names: list[str], *, partial: bool
    ) -> None:
        last = toy.model.num_layers
        self.num_nodes, self.num_layers, self.choices = len(names), last, choices
        self.through = [
            np.array(
                [
                    [
                        min(node_tokens(toy, name, len(r), hears=hears, talks=talks)) if r else 0.0
                        for r in found
                    ]
                    for hears, talks in itertools.product((False, True), repeat=2)
                ]
            )
            for name, found in zip(names, choices, strict=True)
        ]
        self.source = [
            np.array([link_tokens(toy, SOURCE, name) * (bool(r) and r.start == 0) for r in found])
            for name, found in zip(names, choices, strict=True)
        ]
        self.sink = [
            np.array([link_tokens(toy, name, SINK) * (r.stop == last) for r in found])
            for name, found in zip(names, choices, strict=True)
        ]
        self.between = {
            (i, j): np.array(
                [
                    [
                        link_tokens(toy, names[i], names[j]) * may_follow(a, b, partial=partial)
                        for b in choices[j]
                    ]
                    for a in choices[i]
                ]
            )
            for i, j in itertools.permutations(range(len(names)), 2)
        }

    def layer_bounds(self) -> Array:
        """[choices of node 0, of node 1, ...]: tokens a second of the layer that is held least."""
        return reduce(
            np.minimum,
            (
                reduce(
                    np.add.outer,
                    [
                        rates.max(axis=0) * [layer in layers for layers in found]
                        for rates, found in zip(self.through, self.choices, strict=True)
                    ],
                )
                for layer in range(self.num_layers)
            ),
        )

    def flows(self, picked: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Array:
        """Cheapest cut of each placement; picked: [placements, nodes], indices of choices.

        Each node's entry and exit lie on the side of source or sink. Entry beyond and exit before the
        cut costs nothing less than both beyond, so three of the four are looked at.
        """
        nodes = range(self.num_nodes)
        source = [self.source[i][picked[:, i]] for i in nodes]
        sink = [self.sink[i][picked[:, i]] for i in nodes]
        between = {
            (i, j): rates[picked[:, i], picked[:, j]] for (i, j), rates in self.between.items()
        }
        through = []
        for i in nodes:
            hears = sum(between[j, i] for j in nodes if j != i) > 0
            talks = sum(between[i, j] for j in nodes if j != i) > 0
            through.append(self.through[i][2 * hears + talks, picked[:, i]])
        best = np.full(len(picked), math.inf)
        sides = [("S", "S"), ("S", "T"), ("T", "T")]  # of entry and exit
        for cut in itertools.product(sides, repeat=self.num_nodes):
            cost = np.zeros(len(picked))
            for i in nodes:
                if cut[i][0] == "T":
                    cost += source[i]
                if cut[i] == ("S", "T"):
                    cost += through[i]
                if cut[i][1] == "S":
                    cost += sink[i]
            for (i, j), rates in between.items():
                if cut[i][1] == "S" and cut[j][0] == "T":
                    cost += rates
            best = np.minimum(best, cost)
        return best
