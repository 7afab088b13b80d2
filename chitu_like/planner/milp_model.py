"""Placing layers as a mixed integer linear program (Helix, ASPLOS'25), in HiGHS's own words.

For each node i and all layers [s, e) it could hold: x, "it holds these", one of them 1; so where it starts
and ends, s_i and e_i, are sums over x. For each link: f, tokens a second in units of the largest node's,
and d, "it may carry any". Layers that overlap are allowed where j takes over from e_i on
(s_j <= e_i < e_j), or only s_j = e_i is.

Helix has a binary for each number of layers and an integer for the start. With a binary for each pair, no
flow exceeds what any single layer gets computed, half placed nodes or not: 1 A100, 2 L4 and 3 T4 with 20
layers are proven in 26 s on one core, where after a minute without them 22 % were still open.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from chitu_like.cluster.cost_model import ModelFacts
from chitu_like.cluster.layer_placement import LayerPlacement
from chitu_like.cluster.topology import SINK, SOURCE, Cluster
from chitu_like.planner.throughput import NodeThroughput

if TYPE_CHECKING:
    import highspy

Ends = tuple[str, str]

NEGLIGIBLE = 1e-6
"""Share of the largest node's tokens below which a flow is what HiGHS tolerates, not a flow."""


@dataclass(frozen=True, kw_only=True)
class PlacementProblem:
    """What the program is about, in plain numbers.

    Attributes:
        num_layers: of the model.
        node_rates: node -> tokens a second that it computes when it holds 1, 2, ... layers; nodes that
            hold none are absent.
        nic_in, nic_out: node -> tokens a second when its only peer on that side is the coordinator, and
            when another node is one too.
        link_rates: (from, to) -> tokens a second; both are nodes of node_rates, or SOURCE, or SINK.
        partial: whether a node may take over in the middle of its layers.
    """

    num_layers: int
    node_rates: Mapping[str, tuple[float, ...]]
    nic_in: Mapping[str, tuple[float, float]]
    nic_out: Mapping[str, tuple[float, float]]
    link_rates: Mapping[Ends, float]
    partial: bool = True

    @classmethod
    def of(
        cls,
        cluster: Cluster,
        model: ModelFacts,
        throughput: NodeThroughput,
        *,
        partial: bool = True,
    ) -> PlacementProblem:
        """In words of cluster and model; sizes of what is sent as in flow_graph.py."""
        token, both = model.token_bytes, model.activation_bytes + model.token_bytes
        rates = {node.name: throughput.rates(node) for node in cluster.nodes}
        rates = {name: found for name, found in rates.items() if found}
        nodes = [cluster.by_name[name] for name in rates]
        return cls(
            num_layers=model.num_layers,
            node_rates=rates,
            nic_in={node.name: (node.nic_in / token, node.nic_in / both) for node in nodes},
            nic_out={node.name: (node.nic_out / token, node.nic_out / both) for node in nodes},
            link_rates={
                ends: link.bandwidth / (token if ends[0] == SOURCE or ends[1] == SINK else both)
                for ends, link in cluster.link_between.items()
                if all(end in rates for end in ends if end not in (SOURCE, SINK))
            },
            partial=partial,
        )

    @property
    def compute_bound(self) -> float:
        """Tokens a second that no placement exceeds: each is computed in every layer."""
        best = (
            max(k * rate for k, rate in enumerate(r, start=1)) for r in self.node_rates.values()
        )
        return sum(best) / self.num_layers

    def interchangeable(self) -> list[list[str]]:
        """Nodes that may change places without anybody noticing: equal alone, and to all others."""
        groups: list[list[str]] = []
        for name in self.node_rates:
            for group in groups:
                if self._are_alike(name, group[0]):
                    group.append(name)
                    break
            else:
                groups.append([name])
        return groups

    def _are_alike(self, a: str, b: str) -> bool:
        rate = self.link_rates.get
        others = ({SOURCE, SINK} | set(self.node_rates)) - {a, b}
        return (
            all(of[a] == of[b] for of in (self.node_rates, self.nic_in, self.nic_out))
            and rate((a, b)) == rate((b, a))
            and all(
                rate((a, other)) == rate((b, other)) and rate((other, a)) == rate((other, b))
                for other in others
            )
        )

    def allows(self, ends: Ends, held: Mapping[str, range]) -> bool:
        """Whether tokens may go that way under a placement of every node."""
        source, target = ends
        if source == SOURCE:
            return held[target].start == 0
        if target == SINK:
            return held[source].stop == self.num_layers
        if self.partial:
            return held[target].start <= held[source].stop < held[target].stop
        return held[target].start == held[source].stop


@dataclass(frozen=True, kw_only=True)
class PlacementProgram:
    """The program inside a solver, and which of its variables mean what.

    Attributes:
        solver: holds variables and constraints; not run yet.
        unit: tokens a second of a flow of 1.
        holds: node -> layers -> x.
        start, end: node -> where its layers start, and end.
        used: link -> d.
        flow: link -> f.
    """

    problem: PlacementProblem
    solver: highspy.Highs
    unit: float
    holds: dict[str, dict[range, highspy.highs_var]] = field(default_factory=dict)
    start: dict[str, highspy.highs_var] = field(default_factory=dict)
    end: dict[str, highspy.highs_var] = field(default_factory=dict)
    used: dict[Ends, highspy.highs_var] = field(default_factory=dict)
    flow: dict[Ends, highspy.highs_var] = field(default_factory=dict)

    def warm_start(self, placement: LayerPlacement) -> None:
        """Begin from a placement; how much it serves HiGHS finds out by itself."""
        every = {name: placement.held.get(name, range(1)) for name in self.holds}
        for names in self.problem.interchangeable():
            in_order = sorted((every[name] for name in names), key=lambda layers: layers.start)
            every |= zip(names, in_order, strict=True)
        values: dict[int, float] = {}
        for name, choices in self.holds.items():
            for layers, variable in choices.items():
                values[variable.index] = float(layers == every[name])
        for ends, variable in self.used.items():
            values[variable.index] = float(self.problem.allows(ends, every))
        indices = sorted(values)
        self.solver.setSolution(len(indices), indices, [values[index] for index in indices])

    def value(self) -> float:
        """Tokens a second of the solution found."""
        values = self.solver.getSolution().col_value
        leaving = (f for (source, _), f in self.flow.items() if source == SOURCE)
        return self.unit * sum(values[variable.index] for variable in leaving)

    def placement(self) -> LayerPlacement:
        """Layers of the nodes in the solution found that something comes through."""
        values = self.solver.getSolution().col_value
        busy = {target for (_, target), f in self.flow.items() if values[f.index] > NEGLIGIBLE}
        held = {
            name: max(choices, key=lambda layers: values[choices[layers].index])
            for name, choices in self.holds.items()
            if name in busy
        }
        return LayerPlacement(self.problem.num_layers, held)


def build(problem: PlacementProblem, solver: highspy.Highs) -> PlacementProgram:
    """Write the program into an empty solver."""
    import highspy

    unit = max(max(rates) for rates in problem.node_rates.values())
    program = PlacementProgram(problem=problem, solver=solver, unit=unit)
    for name in problem.node_rates:
        _add_layers(program, name)
    for ends in problem.link_rates:
        _add_link(program, ends)
    for name in problem.node_rates:
        _add_node(program, name)
        if problem.partial:
            _add_overheard(program, name)
    for a, b in program.used:
        if a < b and (b, a) in program.used:  # progress never turns back
            solver.addConstr(program.used[a, b] + program.used[b, a] <= 1)
    for names in problem.interchangeable():  # which of them comes first makes no difference
        for one, other in itertools.pairwise(names):
            solver.addConstr(program.start[one] <= program.start[other])
    total = solver.qsum(f for (source, _), f in program.flow.items() if source == SOURCE)
    _add_layer_bounds(program, total)
    solver.setObjective(total, highspy.ObjSense.kMaximize)
    return program


def _add_layers(program: PlacementProgram, name: str) -> None:
    """A node's choices, and where the chosen layers start and end."""
    solver, last = program.solver, program.problem.num_layers
    choices = program.holds[name] = {
        range(first, first + k): solver.addBinary()
        for k in range(1, len(program.problem.node_rates[name]) + 1)
        for first in range(last - k + 1)
    }
    start = program.start[name] = solver.addIntegral(0, last - 1)
    end = program.end[name] = solver.addIntegral(1, last)
    solver.addConstr(solver.qsum(choices.values()) == 1)
    solver.addConstr(start == solver.qsum(layers.start * x for layers, x in choices.items()))
    solver.addConstr(end == solver.qsum(layers.stop * x for layers, x in choices.items()))


def _add_layer_bounds(program: PlacementProgram, total: highspy.highs_linear_expression) -> None:
    """No flow takes more than the nodes that hold a layer compute.

    Where all x are whole this follows from the rest; stated, it holds for half placed nodes too.
    """
    solver, problem = program.solver, program.problem
    for layer in range(problem.num_layers):
        solver.addConstr(
            total
            <= solver.qsum(
                problem.node_rates[name][len(layers) - 1] / program.unit * x
                for name, choices in program.holds.items()
                for layers, x in choices.items()
                if layer in layers
            )
        )


def _add_link(program: PlacementProgram, ends: Ends) -> None:
    """A link's variables, and where layers have to lie for it to carry anything."""
    problem, solver, start, end = program.problem, program.solver, program.start, program.end
    source, target = ends
    # More than either end computes it never carries; the smaller this is, the tighter the bounds.
    rate = min(
        problem.link_rates[ends],
        *(max(problem.node_rates[name]) for name in ends if name in problem.node_rates),
    )
    flow = program.flow[ends] = solver.addVariable(0, rate / program.unit)
    used = program.used[ends] = solver.addBinary()
    solver.addConstr(flow <= rate / program.unit * used)
    last = problem.num_layers
    if source == SOURCE:
        first = (x for layers, x in program.holds[target].items() if layers.start == 0)
        solver.addConstr(used <= solver.qsum(first))
    elif target == SINK:
        final = (x for layers, x in program.holds[source].items() if layers.stop == last)
        solver.addConstr(used <= solver.qsum(final))
    else:
        # Ends lie in 1..last and starts in 0..last-1: by so much a condition can fail, and no more.
        solver.addConstr(start[target] - end[source] <= (last - 2) * (1 - used))
        if problem.partial:
            solver.addConstr(end[source] - end[target] + 1 <= last * (1 - used))
        else:
            solver.addConstr(end[source] - start[target] <= last * (1 - used))


def _add_node(program: PlacementProgram, name: str) -> None:
    """What comes in goes out, and is no more than the node computes and its NICs let through."""
    problem, solver = program.problem, program.solver
    before = {ends: flow for ends, flow in program.flow.items() if ends[1] == name}
    after = {ends: flow for ends, flow in program.flow.items() if ends[0] == name}
    inflow, outflow = solver.qsum(before.values()), solver.qsum(after.values())
    rates = problem.node_rates[name]
    solver.addConstr(inflow == outflow)
    solver.addConstr(
        inflow
        <= solver.qsum(
            rates[len(layers) - 1] / program.unit * x for layers, x in program.holds[name].items()
        )
    )
    for side, nic, other in ((before, problem.nic_in, SOURCE), (after, problem.nic_out, SINK)):
        alone, among = (min(rate, max(rates)) / program.unit for rate in nic[name])
        total = solver.qsum(side.values())
        if alone < max(rates) / program.unit:
            solver.addConstr(total <= alone)
        for ends in side:
            if other not in ends and among < alone:
                solver.addConstr(total <= alone - (alone - among) * program.used[ends])


def _add_overheard(program: PlacementProgram, name: str) -> None:
    """A NIC that others may come in by is as narrow as if they did.

    A node with the first layers that tokens come to from the source hears every node that ends within
    its layers, as flow_graph.py has it; the program may not leave such a link aside.
    """
    alone, among = (
        min(r, max(program.problem.node_rates[name])) for r in program.problem.nic_in[name]
    )
    if among == alone or (SOURCE, name) not in program.used:
        return
    first = program.used[SOURCE, name]
    for (source, target), used in program.used.items():
        if target == name and source != SOURCE:
            apart = program.end[name] - program.end[source]
            program.solver.addConstr(apart <= (program.problem.num_layers - 1) * (1 - first + used))
