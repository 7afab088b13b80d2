"""Placing layers as a mixed integer linear program (Helix, ASPLOS'25), in HiGHS's own words.

For each node i: where it starts, s_i; b_ik, "it holds k layers"; so e_i = s_i + sum_k k b_ik is where it
ends. For each link: f, tokens a second in units of the largest node's, and d, "it may carry any". Layers
that overlap are allowed where j takes over from e_i on (s_j <= e_i < e_j), or only s_j = e_i is.
"""

from __future__ import annotations

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
        start: node -> s.
        holds: node -> b of 1, 2, ... layers.
        used: link -> d.
        flow: link -> f.
    """

    problem: PlacementProblem
    solver: highspy.Highs
    unit: float
    start: dict[str, highspy.highs_var] = field(default_factory=dict)
    holds: dict[str, list[highspy.highs_var]] = field(default_factory=dict)
    used: dict[Ends, highspy.highs_var] = field(default_factory=dict)
    flow: dict[Ends, highspy.highs_var] = field(default_factory=dict)

    def warm_start(self, placement: LayerPlacement) -> None:
        """Begin from a placement; how much it serves HiGHS finds out by itself."""
        every = {name: placement.held.get(name, range(1)) for name in self.start}
        values: dict[int, float] = {}
        for name, layers in every.items():
            values[self.start[name].index] = layers.start
            for k, variable in enumerate(self.holds[name], start=1):
                values[variable.index] = float(k == len(layers))
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
        held = {}
        for name, start in self.start.items():
            if name not in busy:
                continue
            chosen = [values[variable.index] for variable in self.holds[name]]
            first = round(values[start.index])
            held[name] = range(first, first + 1 + chosen.index(max(chosen)))
        return LayerPlacement(self.problem.num_layers, held)


def build(problem: PlacementProblem, solver: highspy.Highs) -> PlacementProgram:
    """Write the program into an empty solver."""
    import highspy

    unit = max(max(rates) for rates in problem.node_rates.values())
    program = PlacementProgram(problem=problem, solver=solver, unit=unit)
    last = problem.num_layers
    end = {}
    for name, rates in problem.node_rates.items():
        start = program.start[name] = solver.addIntegral(0, last - 1)
        holds = program.holds[name] = [solver.addBinary() for _ in rates]
        end[name] = start + solver.qsum(k * b for k, b in enumerate(holds, start=1))
        solver.addConstr(solver.qsum(holds) == 1)
        solver.addConstr(end[name] <= last)
    for ends in problem.link_rates:
        _add_link(program, ends, end)
    for name in problem.node_rates:
        _add_node(program, name)
        if problem.partial:
            _add_overheard(program, name, end)
    for a, b in program.used:
        if a < b and (b, a) in program.used:  # progress never turns back
            solver.addConstr(program.used[a, b] + program.used[b, a] <= 1)
    total = solver.qsum(
        variable for (source, _), variable in program.flow.items() if source == SOURCE
    )
    # Each token is computed in every layer, so that no flow takes more than all nodes compute. This
    # follows from the rest only where variables are whole; stated, it keeps the first bounds in reach.
    solver.addConstr(
        solver.qsum(
            k * rate / (unit * last) * b
            for name, rates in problem.node_rates.items()
            for k, (rate, b) in enumerate(zip(rates, program.holds[name], strict=True), start=1)
        )
        >= total
    )
    solver.setObjective(total, highspy.ObjSense.kMaximize)
    return program


def _add_link(
    program: PlacementProgram, ends: Ends, end: Mapping[str, highspy.highs_linear_expression]
) -> None:
    """A link's variables, and where layers have to lie for it to carry anything."""
    problem, solver, start = program.problem, program.solver, program.start
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
        solver.addConstr(start[target] <= (last - 1) * (1 - used))
    elif target == SINK:
        solver.addConstr(end[source] >= last * used)
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
    rates, holds = problem.node_rates[name], program.holds[name]
    solver.addConstr(inflow == outflow)
    solver.addConstr(
        inflow <= solver.qsum(rate / program.unit * b for rate, b in zip(rates, holds, strict=True))
    )
    for side, nic, other in ((before, problem.nic_in, SOURCE), (after, problem.nic_out, SINK)):
        alone, among = (min(rate, max(rates)) / program.unit for rate in nic[name])
        total = solver.qsum(side.values())
        if alone < max(rates) / program.unit:
            solver.addConstr(total <= alone)
        for ends in side:
            if other not in ends and among < alone:
                solver.addConstr(total <= alone - (alone - among) * program.used[ends])


def _add_overheard(
    program: PlacementProgram, name: str, end: Mapping[str, highspy.highs_linear_expression]
) -> None:
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
            apart = end[name] - end[source]
            program.solver.addConstr(apart <= (program.problem.num_layers - 1) * (1 - first + used))
