"""Before serving: where which layers go, and how many instances of which kind are enough."""

from chitu_like.planner.flow_graph import FlowResult, Hop, Route, check_reachable, evaluate
from chitu_like.planner.heuristics import homogeneous, petals, pipelines, swarm
from chitu_like.planner.layer_plan import LayerPlan
from chitu_like.planner.local_search import (
    Candidate,
    SearchLimits,
    SearchProgress,
    local_search,
)
from chitu_like.planner.score import Score, Scorer
from chitu_like.planner.throughput import NodeThroughput, TypicalLoad, node_throughput

__all__ = [
    "Candidate",
    "FlowResult",
    "Hop",
    "LayerPlan",
    "NodeThroughput",
    "Route",
    "Score",
    "Scorer",
    "SearchLimits",
    "SearchProgress",
    "TypicalLoad",
    "check_reachable",
    "evaluate",
    "homogeneous",
    "local_search",
    "node_throughput",
    "petals",
    "pipelines",
    "swarm",
]
