"""Before serving: where which layers go, and how many instances of which kind are enough."""

from chitu_like.planner.flow_graph import FlowResult, Hop, Route, check_reachable, evaluate
from chitu_like.planner.heuristics import homogeneous, petals, swarm
from chitu_like.planner.throughput import NodeThroughput, TypicalLoad, node_throughput

__all__ = [
    "FlowResult",
    "Hop",
    "NodeThroughput",
    "Route",
    "TypicalLoad",
    "check_reachable",
    "evaluate",
    "homogeneous",
    "node_throughput",
    "petals",
    "swarm",
]
