"""The default planner: simulated annealing over placements, then short simulations of the best few.

Exact maximum flow is cheap on graphs of 2n + 2 vertices, so that a minute on one core looks at hundreds of
thousands of placements. It runs in cycles, each from hot to cold, from the best so far or from a rule of
thumb; the clock only says after which step to stop, so that with the same number of evaluations the same
seed finds the same placements, bit for bit.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

from chitu_like.cluster.cost_model import ModelFacts
from chitu_like.cluster.layer_placement import LayerPlacement
from chitu_like.cluster.topology import Cluster
from chitu_like.core.errors import CapacityError
from chitu_like.planner.flow_graph import FlowGraph, FlowResult, Layers, check_reachable
from chitu_like.planner.heuristics import homogeneous, petals, pipelines, swarm
from chitu_like.planner.moves import MOVES
from chitu_like.planner.score import Score, Scorer
from chitu_like.planner.throughput import NodeThroughput

Objective = Literal["served", "flow"]

CYCLE = 8000
"""Steps from hot to cold."""
HOT, COLD = 0.03, 0.0003
"""Share of the best score by which a worse placement is taken every e-th time."""
GUIDE = 0.1
"""Weight of what all layers take, beside what is served."""
REPORT_S = 0.5


@dataclass(frozen=True, kw_only=True)
class SearchLimits:
    """When to stop, and what to keep.

    Attributes:
        time_s: on the wall clock.
        evaluations: of placements; None leaves it to the clock.
        seed: of all that is drawn.
        keep: candidates that come back, and are simulated.
    """

    time_s: float = 60.0
    evaluations: int | None = None
    seed: int = 0
    keep: int = 5


@dataclass(frozen=True, kw_only=True)
class SearchProgress:
    """How far a search is.

    Attributes:
        elapsed_s: since its start.
        evaluations: placements looked at.
        served: tokens a second of the best so far, by its score.
        max_flow: its flow.
    """

    elapsed_s: float
    evaluations: int
    served: float
    max_flow: float


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A placement worth a simulation.

    Attributes:
        placement: who holds what.
        flow: its maximum flow.
        score: what it serves by Little's law.
        simulated: tokens a second that a simulation gave; None without one.
    """

    placement: LayerPlacement
    flow: FlowResult
    score: Score
    simulated: float | None = None


def local_search(
    cluster: Cluster,
    model: ModelFacts,
    throughput: NodeThroughput,
    *,
    limits: SearchLimits | None = None,
    objective: Objective = "served",
    starts: Sequence[LayerPlacement] = (),
    simulate: Callable[[LayerPlacement, FlowResult], float] | None = None,
    progress: Callable[[SearchProgress], None] | None = None,
) -> list[Candidate]:
    """Find placements that serve the most tokens a second.

    Args:
        cluster: what there is.
        model: what is placed.
        throughput: of the nodes, with what is served.
        limits: when to stop.
        objective: "served" by flow and Little's law, or the flow alone.
        starts: placements to begin from, beside the rules of thumb.
        simulate: tokens a second of a placement, for the best few.
        progress: called twice a second and at the end.

    Returns: the best first, by simulation where there is one.

    Raises: CapacityError for a model that does not fit, ConfigError for a node that nothing leads to.
        Ctrl-C ends the search, not the call: the best so far come back.
    """
    limits = limits or SearchLimits()
    check_reachable(cluster)
    throughput.check_fits(cluster)
    search = _Search(_usable(cluster, throughput), model, throughput, objective, limits, progress)
    search.run(starts)
    found = search.candidates()
    if simulate is not None:
        found = [
            replace(one, simulated=simulate(one.placement, one.flow))
            for one in found[: limits.keep]
        ]
        found.sort(key=lambda one: -(one.simulated or 0.0))
    return found


def _usable(cluster: Cluster, throughput: NodeThroughput) -> Cluster:
    """Without the nodes that hold no layer."""
    nodes = tuple(node for node in cluster.nodes if throughput.max_layers(node))
    gone = {node.name for node in cluster.nodes} - {node.name for node in nodes}
    links = (link for link in cluster.links if not gone & {link.source, link.target})
    return Cluster(nodes, tuple(links))


class _Search:
    """State of a search; `best` is by the objective."""

    def __init__(
        self,
        cluster: Cluster,
        model: ModelFacts,
        throughput: NodeThroughput,
        objective: Objective,
        limits: SearchLimits,
        progress: Callable[[SearchProgress], None] | None,
    ) -> None:
        self._cluster = cluster
        self._throughput = throughput
        self._graph = FlowGraph(cluster, model, throughput)
        self._scorer = Scorer(cluster, throughput)
        self._objective = objective
        self._limits = limits
        self._progress = progress
        self._num_layers = model.num_layers
        self._most = [throughput.max_layers(node) for node in cluster.nodes]
        self._rng = random.Random(limits.seed)
        self._begun_s = self._reported_s = time.monotonic()
        self._evaluations = 0
        self._found: dict[tuple[tuple[str, Layers], ...], tuple[float, list[Layers]]] = {}
        self.best_value = -math.inf
        self.best: list[Layers] = []

    def run(self, starts: Sequence[LayerPlacement]) -> None:
        """Anneal until a limit is reached."""
        try:
            for placement in (*starts, *self._rules_of_thumb()):
                self._keep(self._graph.layers_of(placement))
            for start in self._cycle_starts():
                if self._is_over() or not self._anneal(start):
                    break
        except KeyboardInterrupt:
            if not self._found:
                raise
        self._report()

    def candidates(self) -> list[Candidate]:
        """The best that were found, the best first; of each number of hops one, as far as there are.

        Scores are the less true the more hops there are, so that simulation should see all kinds.
        """
        keep = self._limits.keep
        ranked = sorted(self._found.values(), key=lambda found: -found[0])[: 10 * keep]
        every = [self._candidate(layers) for _, layers in ranked]
        kinds: dict[int, Candidate] = {}
        for one in every:
            kinds.setdefault(max((len(route.hops) for route in one.flow.routes), default=0), one)
        first = list(kinds.values())
        rest = [one for one in every if all(one is not kept for kept in first)]
        chosen = [id(one) for one in (first + rest)[:keep]]
        return [one for one in every if id(one) in chosen]

    def _candidate(self, layers: list[Layers]) -> Candidate:
        placement, flow = self._graph.placement_of(layers), self._graph.result(layers)
        score = self._scorer.score(flow, placement.held)
        return Candidate(placement=placement, flow=flow, score=score)

    def _rules_of_thumb(self) -> Iterator[LayerPlacement]:
        yield homogeneous(self._cluster, self._throughput, seed=self._limits.seed)
        yield petals(self._cluster, self._throughput, seed=self._limits.seed)
        if self._num_layers <= min(self._most) * len(self._most):
            yield swarm(self._cluster, self._throughput)
        yield from self._pipelines()

    def _pipelines(self) -> Iterator[LayerPlacement]:
        with suppress(CapacityError):  # nodes do not divide evenly among so many
            for count in range(1, sum(self._most) // self._num_layers + 1):
                yield pipelines(self._cluster, self._throughput, count=count)

    def _cycle_starts(self) -> Iterator[list[Layers]]:
        """From the best twice, then from elsewhere once."""
        others = itertools.cycle(self._pipelines())
        for seed in itertools.count(self._limits.seed + 1):
            yield self.best
            yield self.best
            yield self._graph.layers_of(next(others))
            yield self.best
            yield self.best
            yield self._graph.layers_of(petals(self._cluster, self._throughput, seed=seed))

    def _anneal(self, layers: list[Layers]) -> bool:
        """One cycle from hot to cold; False if a limit ended it.

        Flows are limited by few nodes, so that most changes leave them as they are: a little of what all
        layers take shows the way.
        """
        rng, num_layers, most = self._rng, self._num_layers, self._most
        bound, all_layers = self._weakest_layer(layers)
        value = self._value(layers, bound, -math.inf)
        guided = value + GUIDE * all_layers
        peak, top = value, layers
        for step in range(CYCLE):
            if self._is_over():
                break
            heat = HOT * (COLD / HOT) ** (step / CYCLE) * max(self.best_value, 1e-9)
            least = guided + heat * math.log(1 - rng.random())
            changed = layers.copy()
            rng.choice(MOVES)(rng, changed, most, num_layers)
            if changed == layers:
                continue
            bound, all_layers = self._weakest_layer(changed)
            guide = GUIDE * all_layers
            seen = self._value(changed, bound, least - guide)
            if seen + guide >= least:
                value, guided, layers = seen, seen + guide, changed
                if value > peak:
                    peak, top = value, layers
                    if value > self.best_value:
                        self.best_value, self.best = value, layers
        self._keep(top)
        return not self._is_over()

    def _keep(self, layers: list[Layers]) -> None:
        """Remember a placement: the best of those in which nodes of a device changed places."""
        value = self._value(layers, self._weakest_layer(layers)[0], -math.inf)
        devices = (node.device for node in self._cluster.nodes)
        alike = tuple(sorted(zip(devices, layers, strict=True)))
        if alike not in self._found or value > self._found[alike][0]:
            self._found[alike] = (value, layers)
        if value > self.best_value:
            self.best_value, self.best = value, layers

    def _value(self, layers: list[Layers], bound: float, least: float) -> float:
        """Tokens a second, or less than `least` if they are; below 0 the layers that are missing."""
        self._evaluations += 1
        if bound < least or bound <= 0:
            return bound
        edges, flow = self._graph.flow(layers)
        if self._objective == "flow" or flow.value < least or flow.value == 0:
            return flow.value
        names = (node.name for node in self._cluster.nodes)
        held = {name: range(*ends) for name, ends in zip(names, layers, strict=True)}
        routes = self._graph.routes(layers, edges, flow)
        return self._scorer.score_routes(routes, held, least=max(least, 0.0)).tokens_per_s

    def _weakest_layer(self, layers: list[Layers]) -> tuple[float, float]:
        """What passes the layer that is computed the least, which bounds the flow, and a mean of all.

        Where layers are missing, minus their number, and 0. The mean is one of inverse squares: nearer to the
        weakest than to the others.
        """
        change = [0.0] * (self._num_layers + 1)
        counts = [0] * (self._num_layers + 1)
        for rates, (start, end) in zip(self._graph.rates, layers, strict=True):
            if end:
                rate = rates[end - start - 1]
                change[start] += rate
                change[end] -= rate
                counts[start] += 1
                counts[end] -= 1
        if missing := list(itertools.accumulate(counts[:-1])).count(0):
            return -float(missing), 0.0
        passing = list(itertools.accumulate(change[:-1]))
        weakest = min(passing)
        if weakest <= 0:
            return 0.0, 0.0
        squares = sum([1 / (rate * rate) for rate in passing])
        return weakest * (1 + 1e-9), math.sqrt(self._num_layers / squares)

    def _is_over(self) -> bool:
        now_s = time.monotonic()
        if now_s - self._reported_s >= REPORT_S:
            self._reported_s = now_s
            self._report()
        if self._limits.evaluations is not None and self._evaluations >= self._limits.evaluations:
            return True
        return now_s - self._begun_s >= self._limits.time_s

    def _report(self) -> None:
        if self._progress is None:
            return
        best = self._candidate(self.best)
        self._progress(
            SearchProgress(
                elapsed_s=time.monotonic() - self._begun_s,
                evaluations=self._evaluations,
                served=best.score.tokens_per_s,
                max_flow=best.flow.max_flow,
            )
        )
