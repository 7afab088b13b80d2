"""Placements by rules of thumb: baselines to compare with, and where a search begins.

None of them looks at the network. All give nodes layers that they can hold; whether every layer is held by
somebody they promise only where they say so.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping

from chitu_like.cluster.layer_placement import LayerPlacement
from chitu_like.cluster.topology import Cluster, Node
from chitu_like.core.errors import CapacityError
from chitu_like.planner.throughput import NodeThroughput


def petals(cluster: Cluster, throughput: NodeThroughput, *, seed: int = 0) -> LayerPlacement:
    """Each node takes the most layers it holds where the others do least (Petals, arXiv:2312.08361).

    Nodes come in random order. Windows are compared by the sorted throughputs of their layers, so that the
    weakest layer counts first.
    """
    nodes = _that_hold_any(cluster, throughput)
    random.Random(seed).shuffle(nodes)
    held: dict[str, range] = {}
    _join_where_least_is_done(nodes, held, cluster, throughput)
    return _in_order(cluster, throughput, held)


def swarm(
    cluster: Cluster, throughput: NodeThroughput, *, num_stages: int | None = None
) -> LayerPlacement:
    """Equal stages; nodes join the weakest one, the fastest first (SWARM, arXiv:2301.11913).

    Args:
        cluster: what there is.
        throughput: of its nodes.
        num_stages: the fewest whose layers the smallest node holds unless given. Where they do not
            divide the layers, some stages have one more. Nodes that cannot hold a stage are left out.

    Raises: CapacityError where there are fewer nodes than stages.
    """
    num_layers = throughput.model.num_layers
    most = [throughput.max_layers(node) for node in cluster.nodes]
    if num_stages is None:
        num_stages = -(-num_layers // max(1, min(most)))
    size = -(-num_layers // num_stages)
    nodes = [node for node, room in zip(cluster.nodes, most, strict=True) if room >= size]
    if not 1 <= num_stages <= min(num_layers, len(nodes)):
        raise CapacityError(
            f"{num_stages} swarm stages of {size} layers need as many nodes that hold so many, and "
            f"{len(nodes)} of {len(most)} do: use petals or a search, which do without equal stages"
        )
    ends = [round(stage * num_layers / num_stages) for stage in range(num_stages + 1)]
    strength = [0.0] * num_stages
    held = {}
    for node in sorted(nodes, key=lambda node: -throughput.of(node.device, size)):
        stage = strength.index(min(strength))
        layers = range(ends[stage], ends[stage + 1])
        strength[stage] += throughput.of(node.device, len(layers))
        held[node.name] = layers
    return _in_order(cluster, throughput, held)


def homogeneous(
    cluster: Cluster, throughput: NodeThroughput, *, seed: int = 0, leftovers: bool = True
) -> LayerPlacement:
    """Pipelines of nodes filled to the brim, device by device, the fastest first (as Orca would).

    What is left of a device goes on with the next one.

    Args:
        cluster: what there is.
        throughput: of its nodes.
        seed: of the order among nodes of a device.
        leftovers: whether nodes that do not make up a whole pipeline help where least is done, as
            `petals` would have it; else they stay empty.

    Raises: CapacityError where all nodes together do not hold the model once.
    """
    throughput.check_fits(cluster)
    num_layers = throughput.model.num_layers
    nodes = _that_hold_any(cluster, throughput)
    random.Random(seed).shuffle(nodes)
    nodes.sort(key=lambda node: (-_speed(node, throughput), node.device))
    held: dict[str, range] = {}
    pipeline: dict[str, range] = {}
    end = 0
    for node in nodes:
        layers = range(end, min(end + throughput.max_layers(node), num_layers))
        pipeline[node.name] = layers
        end = layers.stop
        if end == num_layers:
            held |= pipeline
            pipeline, end = {}, 0
    if leftovers:
        rest = [node for node in nodes if node.name in pipeline]
        _join_where_least_is_done(rest, held, cluster, throughput)
    return _in_order(cluster, throughput, held)


def pipelines(cluster: Cluster, throughput: NodeThroughput, *, count: int = 1) -> LayerPlacement:
    """So many whole pipelines, all as fast as they can be together.

    For the speed of a node with some number of layers, let every node hold as many as leave it that fast: the
    fastest for which the pipelines come about, largest nodes first. Who is not needed helps where least
    is done.

    Args:
        cluster: what there is.
        throughput: of its nodes.
        count: of pipelines; one has the most hops and usually the largest flow.

    Raises: CapacityError where the nodes do not hold the model so many times.
    """
    nodes = _that_hold_any(cluster, throughput)
    speeds = {rate for node in nodes for rate in throughput.rates(node)}
    for speed in sorted(speeds, reverse=True):
        held = _chain(nodes, throughput, speed, count)
        if held is not None:
            rest = [node for node in nodes if node.name not in held]
            _join_where_least_is_done(rest, held, cluster, throughput)
            return _in_order(cluster, throughput, held)
    raise CapacityError(
        f"the cluster does not hold {throughput.model.name} {count} times: ask for fewer pipelines"
    )


def _chain(
    nodes: list[Node], throughput: NodeThroughput, speed: float, count: int
) -> dict[str, range] | None:
    """Pipelines of nodes that hold as many layers as leave them so fast; None if they are too few."""
    num_layers = throughput.model.num_layers
    most = {
        node.name: max(
            (k for k, rate in enumerate(throughput.rates(node), start=1) if rate >= speed),
            default=0,
        )
        for node in nodes
    }
    held: dict[str, range] = {}
    done, end = 0, 0
    for name in sorted(most, key=lambda name: -most[name]):
        if done == count or most[name] == 0:
            break
        held[name] = range(end, min(end + most[name], num_layers))
        end = held[name].stop
        if end == num_layers:
            done, end = done + 1, 0
    return held if done == count else None


def _that_hold_any(cluster: Cluster, throughput: NodeThroughput) -> list[Node]:
    return [node for node in cluster.nodes if throughput.max_layers(node)]


def _speed(node: Node, throughput: NodeThroughput) -> float:
    """Tokens x layers a second of a node that is full."""
    most = throughput.max_layers(node)
    return most * throughput.of(node.device, most)


def _join_where_least_is_done(
    nodes: Iterable[Node], held: dict[str, range], cluster: Cluster, throughput: NodeThroughput
) -> None:
    """Add nodes one by one to those that hold layers already."""
    served = [0.0] * throughput.model.num_layers
    for name, layers in held.items():
        _add(served, layers, throughput.of(cluster.by_name[name].device, len(layers)))
    for node in nodes:
        width = throughput.max_layers(node)
        windows = [range(start, start + width) for start in range(len(served) - width + 1)]
        held[node.name] = min(windows, key=lambda at: sorted(served[at.start : at.stop]))
        _add(served, held[node.name], throughput.of(node.device, width))


def _add(served: list[float], layers: range, tokens_per_s: float) -> None:
    for layer in layers:
        served[layer] += tokens_per_s


def _in_order(
    cluster: Cluster, throughput: NodeThroughput, held: Mapping[str, range]
) -> LayerPlacement:
    """Nodes as the cluster lists them, so that files and drawings look alike."""
    return LayerPlacement(
        throughput.model.num_layers,
        {node.name: held[node.name] for node in cluster.nodes if node.name in held},
    )
